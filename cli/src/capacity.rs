//! How long a run takes, what it costs and how many workers it needs. Pure arithmetic over what was measured.

use serde::Serialize;

/// Bytes of the coordinator's memory for each image of a run (docs/src/explanation/scale.md, measured).
const COORDINATOR_BYTES: f64 = 511.0;
/// Requests to the store for each image: that write or list, and that read (`simulate.rs`).
const REQUESTS: (f64, f64) = (10.0, 9.0);

/// What is asked for, and what was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Question {
    pub images: u64,
    pub lane_steps_per_image: u64,
    /// Lane-steps a second of one worker, measured.
    pub rate: f64,
    pub batch_images: u32,
    /// Bytes of an image's objects, if measured.
    pub bytes_per_image: Option<f64>,
    pub job_bytes: u64,
    /// Jobs on the queue at most.
    pub window: u64,
    /// Seconds until a new worker computes: it starts, and copies and loads the model.
    pub startup: f64,
    /// Dollars for an hour of a worker.
    pub price: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub workers: u64,
    /// Hours until the last image is finished.
    pub hours: f64,
    pub images_per_hour: f64,
    /// Hours of all workers together, with their start.
    pub worker_hours: f64,
    pub cost: Option<f64>,
    pub storage: Option<f64>,
    /// Requests to the store that write or list, and that read.
    pub requests: (f64, f64),
    /// Jobs on the queue at a time.
    pub queue_jobs: u64,
    pub queue_bytes: u64,
    /// Bytes of the coordinator's memory that the run's images take.
    pub coordinator_bytes: f64,
}

impl Question {
    /// Seconds of one worker for all images, without its start.
    fn seconds(&self) -> f64 {
        self.images as f64 * self.lane_steps_per_image as f64 / self.rate
    }

    /// Seconds of a batch of one worker: no run is shorter.
    fn batch_seconds(&self) -> f64 {
        let images = self.images.min(u64::from(self.batch_images)) as f64;
        images * self.lane_steps_per_image as f64 / self.rate
    }

    /// The estimate for a number of workers. The last worker may be alone with most of its last batch, so half a batch is lost.
    pub fn with(&self, workers: u64) -> Estimate {
        let useful = workers.min(self.images.div_ceil(u64::from(self.batch_images))).max(1);
        let tail = if useful > 1 { self.batch_seconds() / 2.0 } else { 0.0 };
        let seconds = self.startup + self.seconds() / useful as f64 + tail;
        let worker_hours = (self.seconds() + useful as f64 * (self.startup + tail)) / 3600.0;
        let queue_jobs = self.window.min(self.images);
        Estimate {
            workers: useful,
            hours: seconds / 3600.0,
            images_per_hour: 3600.0 * self.rate / self.lane_steps_per_image as f64,
            worker_hours,
            cost: self.price.map(|price| price * worker_hours),
            storage: self.bytes_per_image.map(|bytes| bytes * self.images as f64),
            requests: (REQUESTS.0 * self.images as f64, REQUESTS.1 * self.images as f64),
            queue_jobs,
            queue_bytes: queue_jobs * self.job_bytes,
            coordinator_bytes: COORDINATOR_BYTES * self.images as f64,
        }
    }

    /// The fewest workers that finish within `hours`, or the hours that the most of them need.
    pub fn within(&self, hours: f64) -> Result<Estimate, f64> {
        let most = self.images.div_ceil(u64::from(self.batch_images)).max(1);
        let fastest = self.with(most).hours;
        if fastest > hours {
            return Err(fastest);
        }
        let (mut low, mut high) = (1, most);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.with(middle).hours <= hours { high = middle } else { low = middle + 1 }
        }
        Ok(self.with(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            images: 1000,
            lane_steps_per_image: 3600,
            rate: 100.0,
            batch_images: 10,
            bytes_per_image: Some(5e4),
            job_bytes: 1000,
            window: 200,
            startup: 60.0,
            price: Some(2.0),
        }
    }

    #[test]
    fn the_work_is_shared_and_every_worker_has_to_start_and_to_end() {
        let one = question().with(1);
        // 36 seconds an image: ten hours, and a minute to start.
        assert!((one.hours - (10.0 + 1.0 / 60.0)).abs() < 1e-9 && one.images_per_hour == 100.0, "{one:?}");
        let ten = question().with(10);
        // An hour, a minute, and half a batch of six minutes.
        assert!((ten.hours - (1.0 + 4.0 / 60.0)).abs() < 1e-9, "{ten:?}");
        assert!((ten.worker_hours - 10.0 * ten.hours).abs() < 1e-9 && ten.cost == Some(2.0 * ten.worker_hours));
        assert_eq!((ten.queue_jobs, ten.queue_bytes, ten.storage), (200, 200_000, Some(5e7)));
        assert_eq!(question().with(100_000).workers, 100, "more workers than batches are idle");
    }

    #[test]
    fn a_deadline_gives_the_fewest_workers_that_keep_it_or_what_is_possible() {
        let asked = question();
        for hours in [0.2, 0.5, 1.0, 2.0, 9.0, 11.0] {
            let found = asked.within(hours).expect("possible");
            assert!(found.hours <= hours);
            assert!(found.workers == 1 || asked.with(found.workers - 1).hours > hours, "{found:?}");
        }
        let least = asked.within(0.01).expect_err("a batch takes longer");
        assert!((least - asked.with(100).hours).abs() < 1e-9);
    }
}
