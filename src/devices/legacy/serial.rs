//! COM1: a 16550 whose other end is the console.
//!
//! Input is shared with the BIOS's keyboard, so the UART takes a byte only when the guest shows that it
//! listens here: the receive interrupt is enabled and connected (a PC has OUT2 between chip and line), or it
//! reads the line status in a loop. Drivers that look for the chip and empty it do neither, so that they do not
//! lose what was typed early.

use crate::devices::bus::BusDevice;
use crate::devices::legacy::Irq;
use crate::vmstate::{self, Bytes};
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::sync::Arc;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, SerialState};
use vmm_sys_util::eventfd::EventFd;

/// First port of COM1.
pub const COM1: u64 = 0x3f8;
/// Number of ports.
pub const PORTS: u64 = 8;
/// COM1's interrupt.
pub const IRQ: u32 = 4;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const RECEIVED_DATA_INTERRUPT: u8 = 1;
/// Bit of the line status: a break was received.
const BREAK: u8 = 1 << 4;
/// Bytes of the receive FIFO.
const FIFO: usize = 64;
/// So many reads of the line status are a loop that waits for input.
const POLLS: u8 = 4;
/// Bits of the modem control register.
const OUT2: u8 = 1 << 3;
const LOOP_MODE: u8 = 1 << 4;

/// The other end of a serial line.
pub trait Line: Send + Sync {
    /// Takes what the guest has sent.
    fn transmit(&self, bytes: &[u8]);
    /// The next byte for the guest.
    fn receive(&self) -> Option<u8>;
}

/// A 16550 on a [`Line`].
pub struct Uart {
    registers: Serial<Irq, NoEvents, Transmitter>,
    line: Arc<dyn Line>,
    /// Reads of the line status since any other access.
    polls: u8,
    /// A break was received and the guest has not been told.
    broken: bool,
}

/// The registers in a VM state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UartV1 {
    divisor: u16,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    /// Received bytes that the guest has not read.
    received: Bytes,
}

struct Transmitter(Arc<dyn Line>);

impl Write for Transmitter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.transmit(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Uart {
    /// A UART on `line` that raises `irq`.
    pub fn new(line: Arc<dyn Line>, irq: EventFd) -> Uart {
        let mut registers = Serial::new(Irq(irq), Transmitter(line.clone()));
        // The chip comes up with its interrupt cut off; a write to this register cannot fail.
        let _ = registers.write(MODEM_CONTROL as u8, 0);
        Uart { registers, line, polls: 0, broken: false }
    }

    /// Back to power-on.
    ///
    /// # Errors
    /// When the host has no file descriptor left.
    pub fn reset(&mut self) -> io::Result<()> {
        let irq = self.registers.interrupt_evt().0.try_clone()?;
        *self = Uart::new(self.line.clone(), irq);
        Ok(())
    }

    /// Its state. What has been typed and not received yet belongs to the console.
    pub fn save(&self) -> UartV1 {
        let state = self.registers.state();
        UartV1 {
            divisor: u16::from_le_bytes([state.baud_divisor_low, state.baud_divisor_high]),
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            received: Bytes(state.in_buffer),
        }
    }

    /// Whether the chip could be in this state.
    ///
    /// # Errors
    /// When it could not.
    pub fn check(state: &UartV1) -> vmstate::Result<()> {
        match state.received.0.len() {
            ..=FIFO => Ok(()),
            len => Err(vmstate::Error::damaged(format!("the serial port holds {len} bytes"))),
        }
    }

    /// Takes up a state, with the interrupt that it has pending.
    ///
    /// # Errors
    /// When the host has no file descriptor left; then nothing has changed.
    pub fn load(&mut self, state: &UartV1) -> io::Result<()> {
        let irq = self.registers.interrupt_evt().0.try_clone()?;
        let [low, high] = state.divisor.to_le_bytes();
        let registers = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.0.clone(),
        };
        let transmitter = Transmitter(self.line.clone());
        self.registers = Serial::from_state(&registers, Irq(irq), NoEvents, transmitter)
            .map_err(|error| io::Error::other(format!("{error:?}")))?;
        (self.polls, self.broken) = (0, false);
        Ok(())
    }

    /// Takes waiting input if the guest is driven by interrupts. To be called when input has arrived.
    pub fn input_arrived(&mut self) {
        let state = self.registers.state();
        if state.interrupt_enable & RECEIVED_DATA_INTERRUPT != 0 && state.modem_control & OUT2 != 0 {
            self.fill();
        }
    }

    /// The line is held low for a moment: the guest receives a zero byte and hears that it was a break.
    pub fn receive_break(&mut self) {
        if self.registers.fifo_capacity() > 0 {
            self.broken = true;
            // As below.
            let _ = self.registers.enqueue_raw_bytes(&[0]);
        }
    }

    /// Moves input from the line to the receive FIFO, as much as fits. In loop mode the line is cut off.
    fn fill(&mut self) {
        if self.registers.state().modem_control & LOOP_MODE != 0 {
            return;
        }
        while self.registers.fifo_capacity() > 0 {
            let Some(byte) = self.line.receive() else { return };
            // There is room, and an irqfd whose counter is full has the interrupt pending anyway.
            let _ = self.registers.enqueue_raw_bytes(&[byte]);
        }
    }
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let [value] = data else { return };
        self.polls = if offset == LINE_STATUS { self.polls.saturating_add(1) } else { 0 };
        if self.polls >= POLLS {
            self.fill();
        }
        *value = self.registers.read(offset as u8);
        if offset == LINE_STATUS && std::mem::take(&mut self.broken) {
            *value |= BREAK;
        }
        if offset == DATA {
            self.input_arrived();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        self.polls = 0;
        // The line never fails; an irqfd whose counter is full has the interrupt pending anyway.
        let _ = self.registers.write(offset as u8, value);
        if matches!(offset, INTERRUPT_ENABLE | MODEM_CONTROL) {
            self.input_arrived();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Fake {
        sent: Mutex<Vec<u8>>,
        input: Mutex<Vec<u8>>,
    }

    impl Line for Fake {
        fn transmit(&self, bytes: &[u8]) {
            self.sent.lock().unwrap().extend(bytes);
        }
        fn receive(&self) -> Option<u8> {
            let mut input = self.input.lock().unwrap();
            if input.is_empty() { None } else { Some(input.remove(0)) }
        }
    }

    fn uart() -> (Arc<Fake>, EventFd, Uart) {
        let (line, irq) = (Arc::new(Fake::default()), EventFd::new(libc::EFD_NONBLOCK).unwrap());
        let uart = Uart::new(line.clone(), irq.try_clone().unwrap());
        (line, irq, uart)
    }

    fn read(uart: &mut Uart, offset: u64) -> u8 {
        let mut byte = [0];
        uart.read(offset, &mut byte);
        byte[0]
    }

    fn listen(uart: &mut Uart) {
        uart.write(MODEM_CONTROL, &[OUT2]);
        uart.write(INTERRUPT_ENABLE, &[RECEIVED_DATA_INTERRUPT]);
    }

    #[test]
    fn what_the_guest_sends_reaches_the_line() {
        let (line, _irq, mut uart) = uart();
        uart.write(DATA, b"h");
        uart.write(DATA, b"i");
        assert_eq!(*line.sent.lock().unwrap(), b"hi");
    }

    #[test]
    fn input_stays_with_the_console_until_the_guest_listens() {
        let (line, irq, mut uart) = uart();
        line.input.lock().unwrap().extend(b"abc");
        uart.input_arrived();
        assert_eq!(line.input.lock().unwrap().len(), 3);
        listen(&mut uart);
        assert!(irq.read().is_ok());
        assert_eq!([read(&mut uart, DATA), read(&mut uart, DATA), read(&mut uart, DATA)], *b"abc");
    }

    #[test]
    fn a_polling_guest_sees_data_ready() {
        let (line, _irq, mut uart) = uart();
        assert_eq!(read(&mut uart, LINE_STATUS) & 1, 0);
        line.input.lock().unwrap().push(b'x');
        assert!((0..10).any(|_| read(&mut uart, LINE_STATUS) & 1 == 1));
        assert_eq!(read(&mut uart, DATA), b'x');
    }

    #[test]
    fn a_driver_that_starts_up_or_tests_the_chip_loses_no_input() {
        let (line, _irq, mut uart) = uart();
        line.input.lock().unwrap().push(b'x');
        for offset in [LINE_STATUS, LINE_STATUS, DATA, 2, 6, LINE_STATUS, DATA] {
            read(&mut uart, offset);
        }
        uart.write(INTERRUPT_ENABLE, &[0xf]);
        uart.write(MODEM_CONTROL, &[LOOP_MODE | OUT2]);
        assert_eq!(line.input.lock().unwrap().len(), 1);
        uart.write(MODEM_CONTROL, &[OUT2]);
        assert_eq!(read(&mut uart, DATA), b'x');
    }

    #[test]
    fn more_input_than_the_fifo_holds_arrives_complete() {
        let (line, _irq, mut uart) = uart();
        let sent: Vec<u8> = (0..=255).collect();
        line.input.lock().unwrap().extend(&sent);
        listen(&mut uart);
        let got: Vec<u8> = sent.iter().map(|_| read(&mut uart, DATA)).collect();
        assert_eq!(got, sent);
    }

    #[test]
    fn accesses_of_other_widths_do_nothing() {
        let (line, _irq, mut uart) = uart();
        uart.write(DATA, &[1, 2]);
        uart.read(DATA, &mut [0; 4]);
        assert!(line.sent.lock().unwrap().is_empty());
    }

    #[test]
    fn reset_disables_interrupts() {
        let (line, _irq, mut uart) = uart();
        listen(&mut uart);
        uart.reset().unwrap();
        line.input.lock().unwrap().push(1);
        uart.input_arrived();
        assert_eq!(line.input.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_state_moves_to_another_port_with_what_it_had_received_and_its_interrupt() {
        let (line, _irq, mut one) = uart();
        listen(&mut one);
        one.write(7, &[0x5a]);
        line.input.lock().unwrap().extend(b"abc");
        one.input_arrived();
        let state = one.save();
        let (_line, irq, mut other) = uart();
        Uart::check(&state).unwrap();
        other.load(&state).unwrap();
        assert_eq!(other.save(), state);
        assert!(irq.read().is_ok(), "the interrupt is pending");
        assert_eq!([DATA; 3].map(|at| read(&mut other, at)), *b"abc");
        assert_eq!(read(&mut other, 7), 0x5a);
        let too_much = UartV1 { received: Bytes(vec![0; FIFO + 1]), ..state };
        assert!(Uart::check(&too_much).is_err());
    }
}
