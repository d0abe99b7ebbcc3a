//! What operators are told, as JSON in the form of Standard Webhooks (<https://www.standardwebhooks.com>), and its signature. Pure: the
//! time is an argument, in seconds since 1970.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::api::RunStatus;
use hmac::{Hmac, KeyInit, Mac};
use proto::{RunState, hex_sha256};
use results::format::rfc3339;
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Every image has a result or a failure.
    #[serde(rename = "run.finished")]
    Finished,
    #[serde(rename = "run.cancelled")]
    Cancelled,
    /// The coordinator has paused the run: its budget is spent.
    #[serde(rename = "run.over_budget")]
    OverBudget,
    /// The run has images left and makes no progress.
    #[serde(rename = "run.stalled")]
    Stalled,
    /// A stalled run makes progress again.
    #[serde(rename = "run.recovered")]
    Recovered,
    /// Store or broker are away.
    #[serde(rename = "outage.began")]
    OutageBegan,
    #[serde(rename = "outage.ended")]
    OutageEnded,
}

impl Kind {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Finished => "run.finished",
            Kind::Cancelled => "run.cancelled",
            Kind::OverBudget => "run.over_budget",
            Kind::Stalled => "run.stalled",
            Kind::Recovered => "run.recovered",
            Kind::OutageBegan => "outage.began",
            Kind::OutageEnded => "outage.ended",
        }
    }
}

/// The body of a notification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The same however often it is sent: a receiver that has seen it ignores it.
    pub id: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// When it happened: `2026-03-01T00:00:00Z`.
    pub timestamp: String,
    pub data: Data,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Data {
    /// A sentence for people.
    pub text: String,
    /// `None`: it concerns no single run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<RunState>,
    /// Images of the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Images>,
    /// Worker hours so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_hours: Option<f64>,
    /// `store` or `broker`, of an outage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub what: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Images {
    pub total: usize,
    pub succeeded: usize,
    pub failed: usize,
    /// Without a result or failure.
    pub left: usize,
}

impl Notice {
    /// About a run. `what`: tells this event from others of the same kind and run, so that the id of an event is always the same.
    pub fn of_run(kind: Kind, status: &RunStatus, why: &str, what: &str, now: u64) -> Notice {
        let name = &status.name;
        let (total, succeeded, failed) = (status.images, status.skipped + status.succeeded, status.failed);
        let left = total.saturating_sub(succeeded + failed);
        let counts = format!("{succeeded} succeeded, {failed} failed, {left} left");
        let text = match kind {
            Kind::Finished => format!("run {name} is finished: {succeeded} succeeded, {failed} failed"),
            Kind::Cancelled => format!("run {name} is cancelled: {counts}"),
            Kind::OverBudget => format!("run {name} is paused: {why}"),
            Kind::Stalled => format!("run {name} makes no progress {why}: {counts}"),
            Kind::Recovered => format!("run {name} makes progress again: {counts}"),
            Kind::OutageBegan | Kind::OutageEnded => why.to_owned(),
        };
        let images = Some(Images { total, succeeded, failed, left });
        let (run, state, worker_hours) = (Some(name.clone()), Some(status.state), Some(status.worker_hours));
        let data = Data { text, run, state, images, worker_hours, what: None };
        Notice { id: id(&[kind.as_str(), name, what]), kind, timestamp: rfc3339(now).unwrap_or_default(), data }
    }

    /// About an outage. `began`: when it began, in seconds since 1970.
    pub fn of_outage(what: &str, why: Option<&str>, began: u64, now: u64) -> Notice {
        let (kind, text) = match why {
            Some(why) => (Kind::OutageBegan, format!("the {what} is away: {why}")),
            None => (Kind::OutageEnded, format!("the {what} is back")),
        };
        let data = Data { text, what: Some(what.to_owned()), ..Data::default() };
        Notice { id: id(&[kind.as_str(), what, &began.to_string()]), kind, timestamp: rfc3339(now).unwrap_or_default(), data }
    }

    pub fn body(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain fields serialise")
    }
}

fn id(parts: &[&str]) -> String {
    format!("msg_{}", &hex_sha256(parts.join("\n").as_bytes())[..24])
}

/// The secret that receiver and coordinator share.
#[derive(Clone, PartialEq)]
pub struct Secret(Vec<u8>);

/// Bytes of a secret, as Standard Webhooks has them.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Secret, String> {
        let bytes = text.trim().strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
        // The text itself is never shown.
        let wrong = "the webhook's secret is not whsec_ and 24 to 64 bytes in base64: make one with \
            `echo whsec_$(openssl rand -base64 32)`";
        bytes.filter(|bytes| SECRET_BYTES.contains(&bytes.len())).map(Secret).ok_or_else(|| wrong.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// The header `webhook-signature`. `time`: of the request, in seconds since 1970.
    pub fn sign(&self, id: &str, time: u64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("any length is right");
        mac.update(format!("{id}.{time}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        let secret: Secret = "whsec_plJ3nmyCDGBKInavdOK15jslplJ3nmyCDGBKInavdOK15jsl".parse().expect("a secret");
        assert_eq!(format!("{secret:?}"), "Secret");
        let body = br#"{"event_type":"ping","data":{"success":true}}"#;
        let short = Secret(STANDARD.decode("plJ3nmyCDGBKInavdOK15jsl").expect("base64"));
        let signature = short.sign("msg_loFOjxBNrRLzqYUf", 1_731_705_121, body);
        assert_eq!(signature, "v1,rAvfW3dJ/X/qxhsaXPOyyCGmRKsaKWcsNccKXlIktD0=");
        assert_ne!(secret.sign("msg_loFOjxBNrRLzqYUf", 1_731_705_121, body), signature);
    }

    #[test]
    fn a_secret_of_another_form_is_refused_and_not_shown() {
        for wrong in
            ["", "hunter2", "whsec_", "whsec_aHVudGVyMg==", "whsec_not base64!", "plJ3nmyCDGBKInavdOK15jslplJ3nmyCDGBKInav"]
        {
            let why = wrong.parse::<Secret>().expect_err("it is refused");
            assert!(why.contains("openssl") && (wrong.len() < 7 || !why.contains(wrong)), "{why}");
        }
    }

    #[test]
    fn a_notice_says_what_happened_and_its_id_tells_events_apart() {
        let status = RunStatus { name: "r".into(), images: 9, skipped: 1, succeeded: 4, failed: 2, ..RunStatus::default() };
        let notice = |kind, what| Notice::of_run(kind, &status, "for 30 min", what, 1_772_323_200);
        let stalled = notice(Kind::Stalled, "1");
        assert_eq!(stalled.data.text, "run r makes no progress for 30 min: 5 succeeded, 2 failed, 2 left");
        let body: serde_json::Value = serde_json::from_slice(&stalled.body()).expect("JSON");
        assert_eq!(body["type"], "run.stalled");
        assert_eq!(body["timestamp"], "2026-03-01T00:00:00Z");
        assert_eq!(body["data"]["images"], serde_json::json!({ "total": 9, "succeeded": 5, "failed": 2, "left": 2 }));
        assert_eq!(serde_json::from_slice::<Notice>(&stalled.body()).expect("a notice"), stalled);
        assert_eq!(stalled.id, notice(Kind::Stalled, "1").id);
        let others = [notice(Kind::Stalled, "2"), notice(Kind::Finished, "1"), Notice::of_outage("store", None, 1, 2)];
        assert!(others.iter().all(|other| other.id != stalled.id));
        let began = Notice::of_outage("store", Some("no answer"), 1, 2);
        assert_eq!((began.kind, began.data.text.as_str()), (Kind::OutageBegan, "the store is away: no answer"));
    }
}
