//! What every back-end of the queue keeps: one list of cases, run on each.
//!
//! A back-end joins with its name in the `contract!` line; its function opens an empty queue with the case's delivery limit.

mod wait;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use queue::{Channel, Consumer, DEFAULT_DELIVERY_LIMIT as DEFAULT, DeadLetter, Delivery, Error, Parcel, Queue};
use tokio::task::JoinSet;
use wait::{expect, next, within};

/// How long nothing must happen before we believe that it does not.
const QUIET: Duration = Duration::from_millis(100);

macro_rules! contract {
    ($backend:ident: $($case:ident($delivery_limit:expr))*) => {
        mod $backend {
            use super::DEFAULT;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
                async fn $case() {
                    super::$case(super::open::$backend($delivery_limit).await).await;
                }
            )*
        }
    };
    ($($backend:ident)*) => {
        $(contract! { $backend:
            published_messages_arrive_once_and_are_gone_after_ack(DEFAULT)
            channels_are_apart(DEFAULT)
            clones_share_the_queue(DEFAULT)
            consumers_share_the_work(DEFAULT)
            a_consumer_waits_for_what_is_published_later(DEFAULT)
            prefetch_bounds_the_unsettled(DEFAULT)
            a_dropped_wait_loses_nothing(DEFAULT)
            retry_counts_and_ends_among_the_dead_letters(3)
            release_does_not_count(2)
            a_dropped_delivery_comes_back_and_counts(3)
            a_rejected_message_carries_its_reason(DEFAULT)
            a_dead_letter_waits_until_acked(1)
            an_empty_and_a_large_payload_arrive_as_they_were(DEFAULT)
            a_context_stays_with_its_message(2)
            depth_counts_what_waits(DEFAULT)
            many_messages_are_handed_over_at_once(DEFAULT)
            what_a_dropped_consumer_did_not_take_comes_back_uncounted(2)
            reset_empties_a_channel(DEFAULT)
            purge_forgets_what_waits_and_leaves_what_is_held(DEFAULT)
            one_leads_at_a_time(DEFAULT)
            a_broadcast_reaches_every_listener(DEFAULT)
            close_ends_consumers_and_refuses_the_rest(DEFAULT)
            many_consumers_lose_nothing_and_settle_once(10)
        })*
    };
}

contract! { embedded amqp }

mod open {
    use super::Queue;
    use ::harness::RabbitMq;

    pub async fn embedded(delivery_limit: u32) -> Queue {
        Queue::open(&format!("embedded:?delivery_limit={delivery_limit}")).await.unwrap()
    }

    pub async fn amqp(delivery_limit: u32) -> Queue {
        Queue::open(&RabbitMq::own_url(&format!("delivery_limit={delivery_limit}&give_up=60"))).await.unwrap()
    }
}

async fn assert_quiet(consumer: &mut Consumer) {
    assert!(tokio::time::timeout(QUIET, consumer.next()).await.is_err(), "nothing should arrive");
}

async fn assert_depth(queue: &Queue, channel: Channel, expected: usize) {
    within("the expected depth", async {
        while queue.depth(channel).await.unwrap() != expected {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

async fn publish(queue: &Queue, payloads: &[&str]) {
    for payload in payloads {
        queue.publish(Channel::Jobs, payload.as_bytes().to_vec()).await.unwrap();
    }
}

async fn published_messages_arrive_once_and_are_gone_after_ack(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 10).await.unwrap();
    publish(&queue, &["a", "b", "c"]).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let delivery = next(&mut jobs).await;
        assert_eq!((delivery.attempt(), delivery.dead_letter()), (1, None));
        seen.push(delivery.payload().to_vec());
        delivery.ack().await.unwrap();
    }
    seen.sort();
    assert_eq!(seen, [b"a", b"b", b"c"]);
    assert_quiet(&mut jobs).await;
}

async fn channels_are_apart(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let mut events = queue.consume(Channel::Events, 1).await.unwrap();
    queue.publish(Channel::Events, b"event".to_vec()).await.unwrap();
    assert_quiet(&mut jobs).await;
    assert_eq!(next(&mut events).await.payload(), b"event");
}

async fn clones_share_the_queue(queue: Queue) {
    let mut jobs = queue.clone().consume(Channel::Jobs, 1).await.unwrap();
    publish(&queue, &["a"]).await;
    next(&mut jobs).await.ack().await.unwrap();
}

async fn consumers_share_the_work(queue: Queue) {
    let mut first = queue.consume(Channel::Jobs, 1).await.unwrap();
    let mut second = queue.consume(Channel::Jobs, 1).await.unwrap();
    publish(&queue, &["a", "b"]).await;
    let (a, b) = (next(&mut first).await, next(&mut second).await);
    assert_ne!(a.payload(), b.payload());
    a.ack().await.unwrap();
    b.ack().await.unwrap();
}

async fn a_consumer_waits_for_what_is_published_later(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let waiting = tokio::spawn(async move { next(&mut jobs).await.payload().to_vec() });
    tokio::task::yield_now().await;
    publish(&queue, &["late"]).await;
    assert_eq!(within("the delivery", waiting).await.unwrap(), b"late");
}

async fn prefetch_bounds_the_unsettled(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 2).await.unwrap();
    publish(&queue, &["a", "b", "c", "d", "e"]).await;
    let first = next(&mut jobs).await;
    let second = next(&mut jobs).await;
    assert_quiet(&mut jobs).await;
    first.ack().await.unwrap();
    let third = next(&mut jobs).await;
    assert_quiet(&mut jobs).await;
    // Each way to settle frees a place.
    second.retry().await.unwrap();
    let fourth = next(&mut jobs).await;
    third.release().await.unwrap();
    let fifth = next(&mut jobs).await;
    fourth.reject("no").await.unwrap();
    let sixth = next(&mut jobs).await;
    drop(fifth);
    let seventh = next(&mut jobs).await;
    assert_quiet(&mut jobs).await;
    sixth.ack().await.unwrap();
    seventh.ack().await.unwrap();
}

async fn a_dropped_wait_loses_nothing(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    for round in 0..200u32 {
        let other = queue.clone();
        let publish = async move { other.publish(Channel::Jobs, round.to_string().into_bytes()).await.unwrap() };
        let publisher = tokio::spawn(publish);
        let got = loop {
            // Gives up waiting at once, again and again, while the message arrives.
            tokio::select! {
                biased;
                delivery = jobs.next() => break delivery.unwrap().unwrap(),
                () = tokio::task::yield_now() => {}
            }
        };
        assert_eq!(got.payload(), round.to_string().as_bytes());
        got.ack().await.unwrap();
        publisher.await.unwrap();
    }
}

async fn retry_counts_and_ends_among_the_dead_letters(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    publish(&queue, &["poison"]).await;
    for attempt in 1..=3 {
        expect(&mut jobs, b"poison", attempt).await.retry().await.unwrap();
    }
    let letter = expect(&mut dead, b"poison", 1).await;
    let DeadLetter { channel, reason, attempts } = letter.dead_letter().unwrap().clone();
    assert_eq!((channel, attempts), (Channel::Jobs, 3));
    assert!(!reason.is_empty());
    letter.ack().await.unwrap();
    assert_quiet(&mut jobs).await;
}

async fn release_does_not_count(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    publish(&queue, &["a"]).await;
    for _ in 0..10 {
        expect(&mut jobs, b"a", 1).await.release().await.unwrap();
    }
    next(&mut jobs).await.retry().await.unwrap();
    expect(&mut jobs, b"a", 2).await.release().await.unwrap();
    expect(&mut jobs, b"a", 2).await.ack().await.unwrap();
    assert_depth(&queue, Channel::DeadLetters, 0).await;
}

async fn a_dropped_delivery_comes_back_and_counts(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    publish(&queue, &["a"]).await;
    drop(next(&mut jobs).await);
    let crash = tokio::spawn({
        let delivery = expect(&mut jobs, b"a", 2).await;
        async move {
            let _held = delivery;
            panic!("the consumer of this delivery crashes, as the test wants");
        }
    });
    assert!(crash.await.is_err());
    drop(expect(&mut jobs, b"a", 3).await);
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    assert_eq!(next(&mut dead).await.dead_letter().unwrap().attempts, 3);
}

async fn a_rejected_message_carries_its_reason(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    publish(&queue, &["a"]).await;
    next(&mut jobs).await.retry().await.unwrap();
    next(&mut jobs).await.reject("cannot decode images/ü.jpg\nsecond line").await.unwrap();
    let letter = expect(&mut dead, b"a", 1).await;
    let expected = DeadLetter { channel: Channel::Jobs, reason: "cannot decode images/ü.jpg\nsecond line".into(), attempts: 2 };
    assert_eq!(letter.dead_letter(), Some(&expected));
    letter.ack().await.unwrap();
    assert_quiet(&mut jobs).await;
}

async fn a_dead_letter_waits_until_acked(queue: Queue) {
    let mut events = queue.consume(Channel::Events, 1).await.unwrap();
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    queue.publish(Channel::Events, b"e".to_vec()).await.unwrap();
    next(&mut events).await.retry().await.unwrap();
    let letter = next(&mut dead).await;
    let first = letter.dead_letter().cloned();
    assert!(first.is_some());
    letter.release().await.unwrap();
    for _ in 0..15 {
        next(&mut dead).await.retry().await.unwrap();
        drop(next(&mut dead).await);
        next(&mut dead).await.release().await.unwrap();
    }
    let letter = next(&mut dead).await;
    assert_eq!(letter.dead_letter().cloned(), first);
    letter.reject("still bad").await.unwrap();
    let letter = next(&mut dead).await;
    let expected = DeadLetter { channel: Channel::Events, reason: "still bad".into(), attempts: 1 };
    assert_eq!(letter.dead_letter(), Some(&expected));
    letter.ack().await.unwrap();
    assert_quiet(&mut dead).await;
}

async fn an_empty_and_a_large_payload_arrive_as_they_were(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let large: Vec<u8> = (0..1_000_000u32).flat_map(|i| i.to_le_bytes()).collect();
    for payload in [Vec::new(), large] {
        queue.publish(Channel::Jobs, payload.clone()).await.unwrap();
        let delivery = next(&mut jobs).await;
        assert!(delivery.payload() == payload);
        delivery.ack().await.unwrap();
    }
}

/// Through every way back and into the dead letters, and without names that are not of a trace.
async fn a_context_stays_with_its_message(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let parent = "00-62c2df4b519604ee8c8d776f7b64893d-805f176aff450ce0-01";
    let trace = BTreeMap::from([("traceparent".into(), parent.into()), ("tracestate".into(), "a=1,b=ü".into())]);
    let mut context = trace.clone();
    context.insert("x-death".into(), "of a stranger".into());
    queue.publish(Channel::Jobs, Parcel { payload: b"a".to_vec(), context }).await.unwrap();
    for end in ["release", "retry", "drop"] {
        let delivery = next(&mut jobs).await;
        assert_eq!(*delivery.context(), trace, "before {end}");
        match end {
            "release" => delivery.release().await.unwrap(),
            "retry" => delivery.retry().await.unwrap(),
            _ => drop(delivery),
        }
    }
    let mut dead = queue.consume(Channel::DeadLetters, 1).await.unwrap();
    let letter = next(&mut dead).await;
    assert_eq!((letter.payload(), letter.context()), (&b"a"[..], &trace));
    letter.reject("still bad").await.unwrap();
    let letter = next(&mut dead).await;
    assert_eq!(*letter.context(), trace);
    letter.ack().await.unwrap();

    publish(&queue, &["b"]).await;
    assert!(next(&mut jobs).await.context().is_empty());
}

async fn depth_counts_what_waits(queue: Queue) {
    publish(&queue, &["a", "b", "c"]).await;
    assert_depth(&queue, Channel::Jobs, 3).await;
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    let delivery = next(&mut jobs).await;
    assert_depth(&queue, Channel::Jobs, 2).await;
    delivery.reject("no").await.unwrap();
    assert_depth(&queue, Channel::DeadLetters, 1).await;
}

async fn many_messages_are_handed_over_at_once(queue: Queue) {
    const MESSAGES: u32 = 1000;
    queue.publish_all(Channel::Events, (0..MESSAGES).map(|id| id.to_le_bytes().to_vec()).collect()).await.unwrap();
    queue.publish_all(Channel::Events, Vec::<Parcel>::new()).await.unwrap();
    let mut events = queue.consume(Channel::Events, 100).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..MESSAGES {
        let delivery = next(&mut events).await;
        seen.push(u32::from_le_bytes(delivery.payload().try_into().unwrap()));
        delivery.ack().await.unwrap();
    }
    seen.sort();
    assert!(seen.into_iter().eq(0..MESSAGES));
}

async fn what_a_dropped_consumer_did_not_take_comes_back_uncounted(queue: Queue) {
    queue.publish_all(Channel::Jobs, vec![b"job".to_vec(); 5]).await.unwrap();
    for _ in 0..5 {
        let mut jobs = queue.consume(Channel::Jobs, 5).await.unwrap();
        let taken = expect(&mut jobs, b"job", 1).await;
        drop(jobs);
        // What was taken before can still be settled.
        taken.release().await.unwrap();
        assert_depth(&queue, Channel::Jobs, 5).await;
    }
    assert_depth(&queue, Channel::DeadLetters, 0).await;
}

async fn reset_empties_a_channel(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    queue.publish_all(Channel::Jobs, vec![b"before".to_vec(); 10]).await.unwrap();
    let held = next(&mut jobs).await;
    queue.publish(Channel::Events, b"event".to_vec()).await.unwrap();
    queue.reset(Channel::Jobs).await.unwrap();
    held.ack().await.unwrap();
    assert_depth(&queue, Channel::Jobs, 0).await;
    assert_depth(&queue, Channel::Events, 1).await;
    publish(&queue, &["after"]).await;
    expect(&mut jobs, b"after", 1).await.ack().await.unwrap();
}

async fn purge_forgets_what_waits_and_leaves_what_is_held(queue: Queue) {
    let mut jobs = queue.consume(Channel::Jobs, 1).await.unwrap();
    queue.publish_all(Channel::Jobs, vec![b"before".to_vec(); 10]).await.unwrap();
    let held = next(&mut jobs).await;
    assert_depth(&queue, Channel::Jobs, 9).await;
    queue.purge(Channel::Jobs).await.unwrap();
    assert_depth(&queue, Channel::Jobs, 0).await;
    held.release().await.unwrap();
    expect(&mut jobs, b"before", 1).await.ack().await.unwrap();
    assert_depth(&queue, Channel::Jobs, 0).await;
}

async fn one_leads_at_a_time(queue: Queue) {
    let mut first = queue.lead("a").await.unwrap();
    let _of_another_name = within("the other leadership", queue.lead("b")).await.unwrap();
    let other = queue.clone();
    let second = tokio::spawn(async move { other.lead("a").await.unwrap() });
    assert!(tokio::time::timeout(QUIET, first.lost()).await.is_err(), "nothing is lost");
    assert!(!second.is_finished());
    drop(first);
    let _second = within("the second leadership", second).await.unwrap();
}

/// A listener may begin to hear a moment after it was made, so the message is sent until both have heard.
async fn a_broadcast_reaches_every_listener(queue: Queue) {
    let mut listeners = [queue.listen(), queue.clone().listen()];
    for listener in &mut listeners {
        let heard = within("a broadcast", async {
            loop {
                queue.broadcast(b"news".to_vec()).await.unwrap();
                if let Ok(heard) = tokio::time::timeout(QUIET, listener.next()).await {
                    break heard;
                }
            }
        });
        assert_eq!(heard.await.as_deref(), Some(&b"news"[..]));
    }
    // Both hear from now on: one message, two listeners, and no channel has it.
    queue.broadcast(b"last".to_vec()).await.unwrap();
    for listener in &mut listeners {
        within("the last broadcast", async { while listener.next().await.as_deref() != Some(b"last") {} }).await;
    }
    assert_depth(&queue, Channel::Events, 0).await;
    queue.close().await;
    assert_eq!(within("the end of a listener", listeners[0].next()).await, None);
    assert!(queue.broadcast(Vec::new()).await.is_err());
}

async fn close_ends_consumers_and_refuses_the_rest(queue: Queue) {
    let mut held = queue.consume(Channel::Jobs, 1).await.unwrap();
    publish(&queue, &["a"]).await;
    let delivery = next(&mut held).await;
    // One waits for a message, the other for a place.
    let mut idle = queue.consume(Channel::Jobs, 1).await.unwrap();
    let idle = tokio::spawn(async move { idle.next().await.unwrap().is_none() });
    let held = tokio::spawn(async move { held.next().await.unwrap().is_none() });
    tokio::task::yield_now().await;
    queue.clone().close().await;
    assert!(within("the end of the idle consumer", idle).await.unwrap());
    assert!(within("the end of the full consumer", held).await.unwrap());
    assert!(matches!(delivery.ack().await, Err(Error::Closed(_))));
    assert!(matches!(queue.publish(Channel::Jobs, Parcel::default()).await, Err(Error::Closed(_))));
    assert!(matches!(queue.consume(Channel::Jobs, 1).await, Err(Error::Closed(_))));
    assert!(matches!(queue.depth(Channel::Jobs).await, Err(Error::Closed(_))));
    assert!(matches!(queue.reset(Channel::Jobs).await, Err(Error::Closed(_))));
    assert!(matches!(queue.lead("x").await, Err(Error::Closed(_))));
    queue.close().await;
}

/// 16 consumers treat 2000 messages in every way; each message must end exactly once, acked or as a dead letter.
async fn many_consumers_lose_nothing_and_settle_once(queue: Queue) {
    const MESSAGES: u32 = 2000;
    let publishers = (0..4).map(|p| {
        let queue = queue.clone();
        async move {
            for id in (p..MESSAGES).step_by(4) {
                queue.publish(Channel::Jobs, id.to_le_bytes().to_vec()).await.unwrap();
            }
        }
    });
    let publishers: JoinSet<()> = publishers.collect();
    let ends: Arc<Mutex<HashMap<u32, u32>>> = Arc::default();
    let id = |delivery: &Delivery| u32::from_le_bytes(delivery.payload().try_into().unwrap());
    let mut consumers = JoinSet::new();
    for n in 0..16u32 {
        let mut jobs = queue.consume(Channel::Jobs, 1 + (n % 4) as u16).await.unwrap();
        let ends = Arc::clone(&ends);
        consumers.spawn(async move {
            let mut turn = n;
            while let Some(delivery) = jobs.next().await.unwrap() {
                turn += 1;
                let id = id(&delivery);
                match turn % 5 {
                    0 => delivery.retry().await.unwrap(),
                    1 => delivery.release().await.unwrap(),
                    2 => drop(delivery),
                    3 if id.is_multiple_of(10) => delivery.reject("every tenth").await.unwrap(),
                    _ => {
                        delivery.ack().await.unwrap();
                        *ends.lock().unwrap().entry(id).or_default() += 1;
                    }
                }
            }
        });
    }
    let mut dead = queue.consume(Channel::DeadLetters, 8).await.unwrap();
    within("the end of every message", async {
        loop {
            tokio::select! {
                letter = dead.next() => {
                    let letter = letter.unwrap().unwrap();
                    let id = id(&letter);
                    letter.ack().await.unwrap();
                    *ends.lock().unwrap().entry(id).or_default() += 1;
                }
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
            if ends.lock().unwrap().len() == MESSAGES as usize {
                break;
            }
        }
    })
    .await;
    assert_depth(&queue, Channel::Jobs, 0).await;
    publishers.join_all().await;
    queue.close().await;
    consumers.join_all().await;
    let ends = ends.lock().unwrap();
    assert!(ends.values().all(|n| *n == 1), "a message ended twice");
}

#[tokio::test]
async fn unknown_urls_are_refused_without_their_secrets() {
    for url in ["", "embedded", "http://user:secret@host", "embedded:?delivery_limit=0", "embedded:?secret=1"] {
        let text = match Queue::open(url).await {
            Err(e @ Error::InvalidUrl(_)) => e.to_string(),
            other => panic!("{url}: {other:?}"),
        };
        assert!(text.contains("embedded:") && !text.contains("secret"), "{text}");
    }
}
