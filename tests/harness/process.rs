//! Processes of the programs.

use std::os::unix::process::ExitStatusExt;
use std::process::Child;
use std::time::{Duration, Instant};

use crate::{signal, wait_for};

/// A process that is killed when its value is dropped.
pub struct Process(pub Child);

impl Process {
    pub fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    /// Freezes it for a while, in the middle of what it does.
    pub fn stop_for(&self, milliseconds: u64) {
        self.signal("STOP");
        pass(milliseconds);
        self.signal("CONT");
    }

    /// Waits until it ends, which must be a success.
    pub fn leaves(&mut self, seconds: u64) {
        wait_for("a process to leave", seconds, || self.ended());
        assert!(self.succeeded());
    }

    /// Waits for its end and returns whether it was a success.
    pub fn succeeded(&mut self) -> bool {
        self.0.wait().expect("our child").success()
    }

    pub fn ended(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_some()
    }

    /// Whether it ended by `abort`, as at a crash point.
    pub fn aborted(&mut self) -> bool {
        self.0.try_wait().expect("our child").is_some_and(|status| status.signal() == Some(6))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Lets time pass between two faults.
pub fn pass(milliseconds: u64) {
    let until = Instant::now() + Duration::from_millis(milliseconds);
    wait_for("time to pass", 60, || Instant::now() >= until);
}
