//! Waits for what must happen.

use std::time::Duration;

use queue::{Consumer, Delivery};

/// Longest wait: a broker may have to start.
const LIMIT: Duration = Duration::from_secs(120);

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} did not happen"))
}

pub async fn next(consumer: &mut Consumer) -> Delivery {
    within("a delivery", consumer.next()).await.unwrap().expect("the queue is open")
}

/// The next delivery, which must have this payload and be this attempt.
pub async fn expect(consumer: &mut Consumer, payload: &[u8], attempt: u32) -> Delivery {
    let delivery = next(consumer).await;
    assert_eq!((delivery.payload(), delivery.attempt()), (payload, attempt));
    delivery
}
