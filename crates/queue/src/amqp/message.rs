//! A message's headers.
//!
//! This crate counts failures itself: a retried message is a copy with a higher count. It only uses the broker's flag for
//! redelivery, because the broker's count has another meaning in each version, and a dying broker adds a return for each waiting
//! consumer: it offers the message to all of them before it finds that they are gone.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString};

use crate::{CONTEXT, Channel, DeadLetter, Message};

/// Failures counted by this crate.
const FAILURES: &str = "x-basin-failures";
const REASON: &str = "x-basin-reason";
const CHANNEL: &str = "x-basin-channel";
const ATTEMPTS: &str = "x-basin-attempts";
/// History of a message that the broker itself made a dead letter.
const DEATH: &str = "x-death";

/// The headers travel in one frame, so a longer reason is cut.
const REASON_BYTES: usize = 16 * 1024;
const PERSISTENT: u8 = 2;

fn channel_named(name: &str) -> Option<Channel> {
    Channel::ALL.into_iter().find(|channel| channel.name() == name)
}

/// The properties with which `message` is published.
pub(super) fn properties(message: &Message) -> BasicProperties {
    let mut headers = FieldTable::default();
    if message.failures > 0 {
        headers.insert(FAILURES.into(), AMQPValue::LongUInt(message.failures));
    }
    if let Some(letter) = &message.dead_letter {
        headers.insert(REASON.into(), AMQPValue::LongString(LongString::from(cut(&letter.reason))));
        headers.insert(CHANNEL.into(), AMQPValue::LongString(LongString::from(letter.channel.name())));
        headers.insert(ATTEMPTS.into(), AMQPValue::LongUInt(letter.attempts));
    }
    for (name, value) in &message.context {
        headers.insert(name.as_str().into(), AMQPValue::LongString(LongString::from(value.as_str())));
    }
    BasicProperties::default().with_delivery_mode(PERSISTENT).with_headers(headers)
}

/// The message of a delivery on `channel`. `again`: it is redelivered, which counts as one more failure.
pub(super) fn received(channel: Channel, properties: &BasicProperties, again: bool, payload: Vec<u8>) -> Message {
    let none = FieldTable::default();
    let headers = properties.headers().as_ref().unwrap_or(&none);
    let counted = number(headers, FAILURES);
    let dead_letter =
        (channel == Channel::DeadLetters).then(|| own_letter(headers).unwrap_or_else(|| brokers_letter(headers, counted)));
    // The headers of a broker's own dead letter describe its life before; RabbitMQ 4 even marks it as redelivered.
    let brokers = dead_letter.is_some() && !headers.contains_key(CHANNEL);
    let failures = if brokers { 0 } else { counted.saturating_add(again.into()) };
    let context = CONTEXT.into_iter().filter_map(|name| Some((name.to_owned(), text(headers, name)?))).collect();
    Message { payload, context, failures, dead_letter }
}

fn own_letter(headers: &FieldTable) -> Option<DeadLetter> {
    let channel = channel_named(&text(headers, CHANNEL)?)?;
    Some(DeadLetter { channel, reason: text(headers, REASON).unwrap_or_default(), attempts: number(headers, ATTEMPTS) })
}

fn brokers_letter(headers: &FieldTable, counted: u32) -> DeadLetter {
    let death = match headers.inner().get(DEATH) {
        Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().iter().find_map(AMQPValue::as_field_table),
        _ => None,
    };
    let queue = death.and_then(|death| text(death, "queue")).unwrap_or_default();
    let channel = queue.rsplit('.').next().and_then(channel_named).unwrap_or(Channel::Jobs);
    let reason = death.and_then(|death| text(death, "reason")).unwrap_or_else(|| "no reason given".into());
    DeadLetter { channel, reason: format!("given up by the broker: {reason}"), attempts: counted.saturating_add(1) }
}

fn number(headers: &FieldTable, name: &str) -> u32 {
    let number = match headers.inner().get(name) {
        Some(AMQPValue::ShortShortInt(n)) => i64::from(*n),
        Some(AMQPValue::ShortShortUInt(n)) => i64::from(*n),
        Some(AMQPValue::ShortInt(n)) => i64::from(*n),
        Some(AMQPValue::ShortUInt(n)) => i64::from(*n),
        Some(AMQPValue::LongInt(n)) => i64::from(*n),
        Some(AMQPValue::LongUInt(n)) => i64::from(*n),
        Some(AMQPValue::LongLongInt(n)) => *n,
        _ => 0,
    };
    number.clamp(0, i64::from(u32::MAX)) as u32
}

pub(super) fn text(headers: &FieldTable, name: &str) -> Option<String> {
    match headers.inner().get(name)? {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES)]
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldArray;

    use super::*;

    #[test]
    fn headers_survive_the_journey() {
        let letter = DeadLetter { channel: Channel::Events, reason: "ü\nno".into(), attempts: 4 };
        let sent = Message { payload: b"x".to_vec(), failures: 2, dead_letter: Some(letter.clone()), ..Message::default() };
        let got = received(Channel::DeadLetters, &properties(&sent), false, b"x".to_vec());
        assert_eq!((got.failures, got.dead_letter.as_ref()), (2, Some(&letter)));
        let again = received(Channel::DeadLetters, &properties(&sent), true, b"x".to_vec());
        assert_eq!((again.failures, again.dead_letter), (3, Some(letter)));
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let letter = DeadLetter { channel: Channel::Jobs, reason: "ü".repeat(REASON_BYTES), attempts: 1 };
        let sent = Message { dead_letter: Some(letter), ..Message::default() };
        let got = received(Channel::DeadLetters, &properties(&sent), false, Vec::new());
        let reason = got.dead_letter.unwrap().reason;
        assert!(reason.len() <= REASON_BYTES && reason.chars().all(|c| c == 'ü'));
    }

    #[test]
    fn a_dead_letter_of_the_broker_is_translated() {
        let mut death = FieldTable::default();
        death.insert("queue".into(), AMQPValue::LongString("a.b.events".into()));
        death.insert("reason".into(), AMQPValue::LongString("delivery_limit".into()));
        let mut headers = FieldTable::default();
        headers.insert(FAILURES.into(), AMQPValue::LongUInt(2));
        headers.insert(DEATH.into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::FieldTable(death)])));
        let properties = BasicProperties::default().with_headers(headers);
        let got = received(Channel::DeadLetters, &properties, true, Vec::new());
        assert_eq!(got.failures, 0);
        let letter = got.dead_letter.unwrap();
        assert_eq!((letter.channel, letter.attempts), (Channel::Events, 2 + 1));
        assert!(letter.reason.contains("delivery_limit"), "{}", letter.reason);
    }
}
