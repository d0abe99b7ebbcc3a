//! The jobs that this worker holds, for its heartbeat: from the arrival of a delivery until it is settled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use proto::JobId;

/// By number of the job, how many deliveries of it there are. Clones share them.
#[derive(Clone, Default)]
pub struct HeldJobs(Arc<Mutex<BTreeMap<u64, usize>>>);

impl HeldJobs {
    /// The job is held until the value is dropped.
    pub fn hold(&self, job: &JobId) -> Hold {
        let job = job.number();
        *self.lock().entry(job).or_default() += 1;
        Hold { jobs: self.clone(), job }
    }

    pub fn numbers(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}

#[must_use = "a job is held until this is dropped"]
pub struct Hold {
    jobs: HeldJobs,
    job: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut jobs = self.jobs.lock();
        if let Some(deliveries) = jobs.get_mut(&self.job) {
            *deliveries -= 1;
            if *deliveries == 0 {
                jobs.remove(&self.job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::{Job, sample};

    use super::*;

    #[test]
    fn a_job_is_listed_until_its_last_delivery_is_settled() {
        let held = HeldJobs::default();
        let (one, other) = (sample::job().id(), Job { image: "other.png".into(), ..sample::job() }.id());
        let (first, again, _other) = (held.hold(&one), held.hold(&one), held.hold(&other));
        let mut both = vec![one.number(), other.number()];
        both.sort_unstable();
        drop(first);
        assert_eq!(held.numbers(), both);
        drop(again);
        assert_eq!(held.numbers(), [other.number()]);
    }
}
