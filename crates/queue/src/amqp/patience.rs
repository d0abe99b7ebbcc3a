//! Growing pauses between attempts, up to a deadline.

use std::time::Duration;

use tokio::time::Instant;

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Patience {
    pub(super) deadline: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(give_up: Duration) -> Patience {
        Patience { deadline: Instant::now() + give_up, pause: SHORTEST }
    }

    /// Waits before the next attempt. `false`: the deadline has passed.
    pub(super) async fn pause(&mut self) -> bool {
        // Many clients lose a broker at once, and must not all reconnect at once.
        tokio::time::sleep_until(self.wake(Instant::now(), rand::random_range(0.5..1.0))).await;
        Instant::now() < self.deadline
    }

    /// Time of the next attempt. `jitter` is a factor of the pause.
    fn wake(&mut self, now: Instant, jitter: f64) -> Instant {
        let pause = self.pause.mul_f64(jitter);
        self.pause = (self.pause * 2).min(LONGEST);
        (now + pause).min(self.deadline.max(now + SHORTEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        for jitter in [0.5, 0.999] {
            let start = Instant::now();
            let mut patience = Patience { deadline: start + Duration::from_secs(60), pause: SHORTEST };
            let (mut now, mut pauses) = (start, 0);
            while now < patience.deadline {
                let wake = patience.wake(now, jitter);
                assert!(wake > now && wake - now <= LONGEST);
                (now, pauses) = (wake, pauses + 1);
            }
            assert!((12..=40).contains(&pauses), "{pauses}");
            assert_eq!(now - start, Duration::from_secs(60));
        }
    }
}
