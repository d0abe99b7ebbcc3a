//! Growing pauses between attempts, and an end to them.

use std::time::Duration;

use tokio::time::Instant;

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Patience {
    give_up: Duration,
    deadline: Instant,
    pause: Duration,
}

impl Patience {
    pub(super) fn new(give_up: Duration) -> Patience {
        Patience { give_up, deadline: Instant::now() + give_up, pause: SHORTEST }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// After a success: all the time again.
    pub(super) fn renew(&mut self) {
        *self = Patience::new(self.give_up);
    }

    /// Waits before the next attempt. `false`: the time is over.
    pub(super) async fn pause(&mut self) -> bool {
        // Many clients lose a broker at once, and must not come back at once.
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(LONGEST);
        let wake = (Instant::now() + pause).min(self.deadline.max(Instant::now() + SHORTEST));
        tokio::time::sleep_until(wake).await;
        Instant::now() < self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_end() {
        let start = Instant::now();
        let mut patience = Patience::new(Duration::from_secs(60));
        let mut pauses = 0;
        while patience.pause().await {
            pauses += 1;
        }
        assert!((12..=40).contains(&pauses), "{pauses}");
        assert!(start.elapsed() >= Duration::from_secs(60) && start.elapsed() < Duration::from_secs(61));
    }
}
