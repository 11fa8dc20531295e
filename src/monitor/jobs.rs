//! Jobs: work with a name that goes on after the command that began it, as QMP has it.
//!
//! ```text
//!   created ─▶ running ─▶ waiting ─▶ pending ─▶ concluded ─▶ null
//!                 └─────▶ aborting ───────────────┘    └ at once, or by job-dismiss
//! ```
//! Each step is an event JOB_STATUS_CHANGE.

use super::qmp::{self, Argument, Kind, Reply};
use super::{Control, Error, Pending, Result};
use serde_json::{Value, json};

/// Jobs that can be about at most: programs must dismiss what they have seen.
const LIMIT: usize = 64;

pub(super) const QMP: &[qmp::Command] = &[
    qmp::Command::plain("query-jobs", |control, _| Ok(Reply::Value(control.jobs.describe()))),
    qmp::Command {
        name: "job-dismiss",
        arguments: &[Argument::required("id", Kind::Text)],
        run: |control, arguments| {
            control.dismiss_job(arguments.text("id").unwrap_or_default())?;
            Ok(Reply::nothing())
        },
    },
];

/// The jobs that are about, in the order of their beginning.
#[derive(Default)]
pub(super) struct Jobs(Vec<Job>);

struct Job {
    id: String,
    kind: &'static str,
    status: &'static str,
    /// It goes away by itself when it is concluded.
    dismissed: bool,
    pending: Option<Pending>,
    error: Option<String>,
}

impl Jobs {
    fn describe(&self) -> Value {
        let describe = |job: &Job| {
            let done = u64::from(job.pending.is_none());
            let mut value = json!({
                "current-progress": done,
                "status": job.status,
                "total-progress": 1,
                "type": job.kind,
                "id": job.id,
            });
            if let Some(error) = &job.error {
                value["error"] = json!(error);
            }
            value
        };
        self.0.iter().map(describe).collect()
    }
}

impl Control {
    /// Whether a new job may have this name.
    pub(super) fn check_job_id(&self, id: &str) -> Result<()> {
        let rest = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if !(id.starts_with(|c: char| c.is_ascii_alphabetic()) && id.chars().all(rest)) {
            return Err(Error::new(format!("Invalid job ID '{id}'")));
        }
        if self.jobs.0.iter().any(|job| job.id == id) {
            return Err(Error::new(format!("Job ID '{id}' already in use")));
        }
        match self.jobs.0.len() {
            LIMIT.. => Err(Error::new("too many jobs: dismiss those that are concluded")),
            _ => Ok(()),
        }
    }

    /// Notes work under way as a job. `dismissed`: nobody will ask for its end.
    pub(super) fn add_job(&mut self, id: &str, kind: &'static str, dismissed: bool, pending: Pending) {
        let index = self.begin_job(id, kind, dismissed);
        self.jobs.0[index].pending = Some(pending);
    }

    /// Does `work`, which holds up everything, as a job.
    pub(super) fn run_job(
        &mut self,
        id: &str,
        kind: &'static str,
        work: impl FnOnce(&mut Control) -> Result<()>,
    ) {
        let index = self.begin_job(id, kind, false);
        let result = work(self);
        // The machine's events belong between the job's.
        self.hear_machine();
        self.conclude_job(index, result);
    }

    fn begin_job(&mut self, id: &str, kind: &'static str, dismissed: bool) -> usize {
        let id = id.to_owned();
        self.jobs.0.push(Job { id, kind, status: "created", dismissed, pending: None, error: None });
        let index = self.jobs.0.len() - 1;
        self.set_job_status(index, "created");
        self.set_job_status(index, "running");
        index
    }

    /// Ends the jobs whose work is done.
    pub(super) fn advance_jobs(&mut self) {
        for index in (0..self.jobs.0.len()).rev() {
            let done = self.jobs.0[index].pending.as_mut().and_then(Pending::poll);
            if let Some(result) = done {
                self.conclude_job(index, result);
            }
        }
    }

    fn conclude_job(&mut self, index: usize, result: Result<()>) {
        self.jobs.0[index].pending = None;
        self.jobs.0[index].error = result.err().map(|error| error.description);
        match self.jobs.0[index].error {
            Some(_) => self.set_job_status(index, "aborting"),
            None => {
                self.set_job_status(index, "waiting");
                self.set_job_status(index, "pending");
            }
        }
        self.set_job_status(index, "concluded");
        if self.jobs.0[index].dismissed {
            self.remove_job(index);
        }
    }

    fn dismiss_job(&mut self, id: &str) -> Result<()> {
        let index = self.jobs.0.iter().position(|job| job.id == id);
        let index = index.ok_or_else(|| Error::new("Job not found"))?;
        let status = self.jobs.0[index].status;
        if status != "concluded" {
            let what = format!("Job '{id}' in state '{status}' cannot accept command verb 'dismiss'");
            return Err(Error::new(what));
        }
        self.remove_job(index);
        Ok(())
    }

    fn remove_job(&mut self, index: usize) {
        self.set_job_status(index, "null");
        self.jobs.0.remove(index);
    }

    fn set_job_status(&mut self, index: usize, status: &'static str) {
        let job = &mut self.jobs.0[index];
        job.status = status;
        let data = json!({"status": status, "id": job.id});
        self.emit("JOB_STATUS_CHANGE", Some(data));
    }
}
