//! What the user is to be told, until someone tells it.

/// Most messages that are kept; of more, only the number.
const MOST: usize = 32;

/// Messages that wait.
#[derive(Default)]
pub(super) struct Notices {
    waiting: Vec<String>,
    unsaid: usize,
}

impl Notices {
    pub(super) fn say(&mut self, message: String) {
        if self.waiting.len() < MOST {
            self.waiting.push(message);
        } else {
            self.unsaid += 1;
        }
    }

    /// All that wait.
    pub(super) fn take(&mut self) -> Vec<String> {
        let mut all = std::mem::take(&mut self.waiting);
        match std::mem::take(&mut self.unsaid) {
            0 => {}
            more => all.push(format!("and {more} messages more")),
        }
        all
    }
}
