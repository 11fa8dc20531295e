//! Stop, go on, reset, power button, quit.

use super::hmp::table::Command;
use super::qmp::{self, Reply};
use super::{Control, Result};

pub(super) const COMMANDS: &[Command] = &[
    Command::plain("stop|s", "stop the guest", stop),
    Command::plain("cont|c", "let a stopped guest run on", cont),
    Command::plain("system_reset", "reset the machine", system_reset),
    Command::plain(
        "system_powerdown",
        "press the power button: the guest's system shuts down",
        system_powerdown,
    ),
    Command::plain("quit|q", "end the guest and close its disks", |control| {
        control.quit("host-ui");
        Ok(())
    }),
];

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command::plain("stop", |control, _| reply(stop(control))),
    qmp::Command::plain("cont", |control, _| reply(cont(control))),
    qmp::Command::plain("system_reset", |control, _| reply(system_reset(control))),
    qmp::Command::plain("system_powerdown", |control, _| reply(system_powerdown(control))),
    qmp::Command::plain("quit", |control, _| {
        control.quit("host-qmp-quit");
        reply(Ok(()))
    }),
];

fn reply(done: Result<()>) -> Result<Reply> {
    done.map(|()| Reply::nothing())
}

fn stop(control: &mut Control) -> Result<()> {
    Ok(control.machine.stop()?)
}

fn cont(control: &mut Control) -> Result<()> {
    control.machine.cont();
    Ok(())
}

fn system_reset(control: &mut Control) -> Result<()> {
    control.machine.request_reset();
    Ok(())
}

fn system_powerdown(control: &mut Control) -> Result<()> {
    control.machine.press_power_button();
    control.emit("POWERDOWN", None);
    Ok(())
}
