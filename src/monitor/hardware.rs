//! What the guest's hardware is: registers, address spaces, PCI bus.

use super::hmp::table::Command;
use super::{Control, Result};
use crate::devices::pci::{Bar, ConfigSpace};
use crate::vm::memory_map::MappedRange;
use std::fmt::Write;

pub(super) const COMMANDS: &[Command] = &[
    Command::show("info registers", "show the registers of all vCPUs", registers),
    Command::show("info mtree", "show the guest's address spaces", address_spaces),
    Command::show("info pci", "show the PCI bus", pci),
];

/// Offsets in the configuration space (PCI Local Bus 3.0, 6.1).
const IDS: usize = 0x00;
const CLASS: usize = 0x08;
const SUBSYSTEM: usize = 0x2c;

/// Names of classes: base class and subclass.
const CLASSES: &[(u32, &str)] = &[(0x0600, "Host bridge"), (0x0100, "SCSI controller")];

fn registers(control: &mut Control, out: &mut String) -> Result<()> {
    for (index, registers) in control.machine.registers()?.into_iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(out, "\nCPU#{index}\n{registers}\n");
    }
    Ok(())
}

fn address_spaces(control: &mut Control, out: &mut String) -> Result<()> {
    address_space("memory", &control.machine.memory_map(), out);
    out.push('\n');
    address_space("I/O", &control.machine.port_map(), out);
    Ok(())
}

fn address_space(name: &str, ranges: &[MappedRange], out: &mut String) {
    // As above.
    let _ = writeln!(out, "address-space: {name}");
    for MappedRange { first, last, name, ram } in ranges {
        let kind = if *ram { "ram" } else { "i/o" };
        let _ = writeln!(out, "  {first:016x}-{last:016x} (prio 0, {kind}): {name}");
    }
}

fn pci(control: &mut Control, out: &mut String) -> Result<()> {
    for (slot, config) in control.machine.pci().functions() {
        // As above.
        let _ = writeln!(out, "  Bus  0, device {slot:3}, function 0:");
        function(config, out);
    }
    Ok(())
}

fn function(config: &ConfigSpace, out: &mut String) {
    let (ids, class, subsystem) = (config.u32(IDS), config.u32(CLASS) >> 16, config.u32(SUBSYSTEM));
    let name = CLASSES.iter().find(|(number, _)| *number == class);
    let name = name.map_or_else(|| format!("Class {class:04x}"), |(_, name)| (*name).to_owned());
    // As above.
    let _ = writeln!(out, "    {name}: PCI device {:04x}:{:04x}", ids & 0xffff, ids >> 16);
    if subsystem != 0 {
        let _ = writeln!(out, "      PCI subsystem {:04x}:{:04x}", subsystem & 0xffff, subsystem >> 16);
    }
    for &bar in config.bars() {
        base_address(config, bar, out);
    }
    out.push_str("      id \"\"\n");
}

fn base_address(config: &ConfigSpace, bar: Bar, out: &mut String) {
    let first = config.bar_address(bar);
    let last = first.wrapping_add(bar.size - 1);
    // As above.
    let _ = writeln!(out, "      BAR{}: 64 bit memory at 0x{first:08x} [0x{last:08x}]", bar.index);
}
