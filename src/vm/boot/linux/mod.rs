//! Booting a kernel without firmware (`-kernel`): bzImage by the Linux boot protocol, ELF by PVH or, where the
//! kernel has no PVH entry, by the 64-bit entry of the same protocol.
//!
//! ```text
//!   0000_0500  GDT           [entry]
//!   0000_6000  PVH start info, module list, memory map
//!   0000_7000  boot parameters ("zero page")
//!   0000_9000  page tables: the first 4 GiB, identical   [entry]
//!   0002_0000  command line
//!   0010_0000  kernel
//!        ...
//!   initrd, at the end of low RAM or of what the kernel can reach
//! ```
//!
//! The files stay open, so a reset boots what the machine was started with.

mod entry;
mod params;

use crate::block::error::errno_text;
use crate::vm::layout::{HIGH_RAM_START, Layout};
use crate::vm::memory::GuestMemory;
use crate::vm::{Error, Result};
pub use entry::Entry;
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use params::{Initrd, Parameters};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Where the command line is put, with its terminating zero.
const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line that any kernel takes here, in bytes without the zero.
const COMMAND_LINE_LIMIT: usize = 0xffff;
/// What kernels take that do not say (boot protocol before 2.06).
const OLD_COMMAND_LINE_LIMIT: usize = 255;
/// The highest address of an initrd for kernels that do not say.
const INITRD_LIMIT: u64 = 0x37ff_ffff;
/// Offset and value of the boot protocol's signature in a bzImage.
const SIGNATURE: (usize, &[u8; 4]) = (0x202, b"HdrS");
const PAGE: u64 = 4096;

/// A kernel to boot, with initrd and command line.
pub struct LinuxBoot {
    kernel: Image,
    kind: Kind,
    initrd: Option<Image>,
    command_line: String,
    memory: Arc<GuestMemory>,
    layout: Layout,
    rsdp: u64,
}

struct Image {
    path: PathBuf,
    file: File,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    BzImage,
    Elf,
}

/// Which files to boot.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// bzImage or ELF file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub command_line: String,
}

impl LinuxBoot {
    /// Opens the files. `rsdp` is where the ACPI tables begin.
    ///
    /// # Errors
    /// When a file cannot be opened, or the kernel is none.
    pub fn open(files: &Files, memory: Arc<GuestMemory>, layout: Layout, rsdp: u64) -> Result<LinuxBoot> {
        let mut kernel = Image::open("kernel", &files.kernel)?;
        let kind = kernel.kind()?;
        let initrd = files.initrd.as_deref().map(|path| Image::open("initrd", path)).transpose()?;
        let command_line = files.command_line.clone();
        if command_line.contains('\0') {
            return Err(Error::new("the kernel command line contains a zero byte"));
        }
        Ok(LinuxBoot { kernel, kind, initrd, command_line, memory, layout, rsdp })
    }

    /// Puts everything into the guest's memory.
    ///
    /// # Errors
    /// When a file cannot be read or something does not fit.
    pub fn load(&mut self) -> Result<Entry> {
        match self.kind {
            Kind::BzImage => self.load_bzimage(),
            Kind::Elf => self.load_elf(),
        }
    }

    fn load_bzimage(&mut self) -> Result<Entry> {
        let start = Some(GuestAddress(HIGH_RAM_START));
        let loaded = BzImage::load(&*self.memory, None, &mut self.kernel.file, start)
            .map_err(|error| self.bad_kernel(&error.to_string()))?;
        let header = loaded.setup_header.ok_or_else(|| self.bad_kernel("it has no setup header"))?;
        let end = self.run_time_end(&loaded, &header)?;
        let has_limits = header.version >= 0x0203;
        let limit = if has_limits { u64::from(header.initrd_addr_max) } else { INITRD_LIMIT };
        let command_line =
            if header.version >= 0x0206 { header.cmdline_size as usize } else { OLD_COMMAND_LINE_LIMIT };
        let parameters = self.parameters(end, limit, command_line)?;
        parameters.write_zero_page(&self.memory, header)?;
        const XLF_KERNEL_64: u16 = 1;
        if header.version >= 0x020c && header.xloadflags & XLF_KERNEL_64 != 0 {
            // The 64-bit entry is 200h bytes into the protected-mode kernel (boot protocol, "64-bit boot").
            return Entry::long_mode(&self.memory, loaded.kernel_load.0 + 0x200, params::ZERO_PAGE);
        }
        Entry::protected_mode(&self.memory, loaded.kernel_load.0, entry::Argument::Rsi(params::ZERO_PAGE))
    }

    /// The first address that the kernel leaves free before it has read the memory map.
    fn run_time_end(&self, loaded: &KernelLoaderResult, header: &setup_header) -> Result<u64> {
        let mut end = loaded.kernel_end;
        if header.version >= 0x020a {
            let start = loaded.kernel_load.0.max(header.pref_address);
            end = end.max(start.saturating_add(u64::from(header.init_size)));
        }
        if end > self.layout.low_ram() {
            let needed = end.div_ceil(1 << 20);
            return Err(
                self.no_room(&format!("the kernel {} needs {needed} MiB", self.kernel.path.display()))
            );
        }
        Ok(end)
    }

    fn load_elf(&mut self) -> Result<Entry> {
        let loaded = Elf::load(&*self.memory, None, &mut self.kernel.file, None)
            .map_err(|error| self.bad_kernel(&error.to_string()))?;
        if loaded.kernel_end > self.layout.low_ram() {
            return Err(self.bad_kernel("it does not fit into the guest's memory"));
        }
        let parameters = self.parameters(loaded.kernel_end, INITRD_LIMIT, COMMAND_LINE_LIMIT)?;
        if let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap {
            parameters.write_pvh(&self.memory)?;
            return Entry::protected_mode(
                &self.memory,
                entry.0,
                entry::Argument::Rbx(params::PVH_START_INFO),
            );
        }
        parameters.write_zero_page(&self.memory, setup_header::default())?;
        Entry::long_mode(&self.memory, loaded.kernel_load.0, params::ZERO_PAGE)
    }

    /// Loads initrd and command line, and says where they are.
    fn parameters(
        &mut self,
        kernel_end: u64,
        initrd_limit: u64,
        command_line_limit: usize,
    ) -> Result<Parameters> {
        let limit = command_line_limit.min(COMMAND_LINE_LIMIT);
        if self.command_line.len() > limit {
            let len = self.command_line.len();
            return Err(Error::new(format!(
                "the kernel command line has {len} bytes, this kernel takes {limit}"
            )));
        }
        let mut bytes = self.command_line.clone().into_bytes();
        bytes.push(0);
        write(&self.memory, &bytes, COMMAND_LINE)?;
        let initrd = self.load_initrd(kernel_end, initrd_limit)?;
        Ok(Parameters { command_line: COMMAND_LINE, initrd, rsdp: self.rsdp, map: self.layout.e820() })
    }

    fn load_initrd(&mut self, kernel_end: u64, limit: u64) -> Result<Option<Initrd>> {
        let Some(initrd) = &mut self.initrd else { return Ok(None) };
        let size = initrd.file.seek(SeekFrom::End(0)).map_err(|error| initrd.error(&error))?;
        let top = self.layout.low_ram().min(limit.saturating_add(1));
        let start =
            top.checked_sub(size).map(|start| start & !(PAGE - 1)).filter(|start| *start >= kernel_end);
        let Some(start) = start else {
            let message = format!("the initrd {} needs {size} bytes", initrd.path.display());
            return Err(self.no_room(&message));
        };
        initrd.file.rewind().map_err(|error| initrd.error(&error))?;
        self.memory
            .read_exact_volatile_from(GuestAddress(start), &mut initrd.file, size as usize)
            .map_err(|error| initrd.error(&error))?;
        Ok((size > 0).then_some(Initrd { start, size }))
    }

    fn bad_kernel(&self, why: &str) -> Error {
        Error::new(format!("cannot boot {}: {why}", self.kernel.path.display()))
    }

    fn no_room(&self, what: &str) -> Error {
        let mib = self.layout.low_ram() >> 20;
        Error::new(format!("{what}, the guest has {mib} MiB in its place"))
            .remedy("give the guest more with -m")
    }
}

impl Image {
    fn open(what: &str, path: &Path) -> Result<Image> {
        let failed = |cause: &str| {
            Error::new(format!("cannot open the {what} {}: {cause}", path.display()))
                .remedy(format!("name a readable file with -{what}"))
        };
        // Without O_NONBLOCK a FIFO would be waited for.
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|error| failed(&errno_text(&error)))?;
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Err(failed("it is not a regular file"));
        }
        Ok(Image { path: path.to_owned(), file })
    }

    /// Tells kernels from other files by their first bytes.
    fn kind(&mut self) -> Result<Kind> {
        let mut head = Vec::new();
        self.file.by_ref().take(1024).read_to_end(&mut head).map_err(|error| self.error(&error))?;
        self.file.rewind().map_err(|error| self.error(&error))?;
        let elf = head.starts_with(b"\x7fELF");
        // Class and machine (ELF-64 specification, figure 3).
        let x86_64 = head.get(4) == Some(&2) && head.get(18..20) == Some(&[62, 0]);
        match head.get(SIGNATURE.0..SIGNATURE.0 + 4) {
            _ if elf && x86_64 => Ok(Kind::Elf),
            _ if elf => Err(self.not_a_kernel("it is an ELF file, but not for x86-64")),
            Some(bytes) if bytes == SIGNATURE.1 => Ok(Kind::BzImage),
            _ => Err(self.not_a_kernel("it is neither a bzImage nor an ELF file")),
        }
    }

    fn not_a_kernel(&self, why: &str) -> Error {
        Error::new(format!("{} is not a kernel: {why}", self.path.display()))
            .remedy("give -kernel a vmlinuz or vmlinux file")
    }

    fn error(&self, error: &dyn std::fmt::Display) -> Error {
        Error::new(format!("cannot read {}: {error}", self.path.display()))
    }
}

fn write(memory: &GuestMemory, bytes: &[u8], address: u64) -> Result<()> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|_| Error::new("the guest has too little memory to boot").remedy("give it more with -m"))
}

#[cfg(test)]
mod tests;
