//! What the viewers of the dashboard are told: first how everything stands, then what changes. Pure.
//!
//! The state is made once for all viewers, and shares what has not changed with the state before. Each viewer has its own record of
//! what it was told, so that a slow one gets the last state of a thing and not all between. A message has a bound; what it has no
//! room for comes with the next one.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

/// Most runs and workers in a message. 10,000 workers change 200 times between two messages: with 300 bytes each, 300 kB each second.
const MOST: usize = 256;

/// What is known of one run or worker.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    json: Arc<str>,
    /// When it was last heard of; the same time means the same `json`.
    heard: Option<f64>,
}

/// By name.
type Named = BTreeMap<Arc<str>, Known>;

/// How runs, workers and outages stand.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    runs: Named,
    workers: Named,
    outages: Vec<&'static str>,
}

impl Standing {
    /// The state that follows this one. Workers come with the times when they were heard of.
    pub(super) fn next<'a, R: Serialize + 'a, W: Serialize + 'a>(
        &self,
        runs: impl Iterator<Item = (&'a str, &'a R)>,
        workers: impl Iterator<Item = (&'a str, f64, &'a W)>,
        outages: Vec<&'static str>,
    ) -> Standing {
        let run = |(name, run)| known(&self.runs, name, None, || json!(run).to_string());
        let worker = |(name, heard, alive)| {
            known(&self.workers, name, Some(heard), || json!({ "name": name, "alive": alive }).to_string())
        };
        Standing { runs: runs.map(run).collect(), workers: workers.map(worker).collect(), outages }
    }
}

/// With the name and the text of before, where they are the same.
fn known(before: &Named, name: &str, heard: Option<f64>, json: impl FnOnce() -> String) -> (Arc<str>, Known) {
    let Some((name, last)) = before.get_key_value(name) else {
        return (name.into(), Known { json: json().into(), heard });
    };
    if heard.is_some() && heard == last.heard {
        return (name.clone(), last.clone());
    }
    let json = json();
    let json = if *last.json == *json { last.json.clone() } else { json.into() };
    (name.clone(), Known { json, heard })
}

/// What a viewer was told last. No standing: nothing yet.
#[derive(Debug, Default)]
pub(super) struct Told {
    standing: Option<Standing>,
    /// The last run and worker that there was room for.
    last: [Option<Arc<str>>; 2],
}

impl Told {
    /// The next message, and whether more is to be told at once. `None`: the viewer knows everything.
    pub(super) fn next(&mut self, now: &Standing) -> Option<(String, bool)> {
        let full = self.standing.is_none();
        let told = self.standing.get_or_insert_default();
        let [last_run, last_worker] = &mut self.last;
        let mut room = MOST;
        let runs = changes(&mut told.runs, &now.runs, &mut room, last_run);
        let workers = changes(&mut told.workers, &now.workers, &mut room, last_worker);
        let same = told.outages == now.outages;
        told.outages.clone_from(&now.outages);
        if !full && same && runs.is_empty() && workers.is_empty() {
            return None;
        }
        let gone = json!({ "runs": runs.gone, "workers": workers.gone });
        let (runs, workers, outages) = (runs.json.join(","), workers.json.join(","), json!(now.outages));
        let message = format!(r#"{{"full":{full},"runs":[{runs}],"workers":[{workers}],"gone":{gone},"outages":{outages}}}"#);
        Some((message, room == 0))
    }
}

#[derive(Debug, Default, PartialEq)]
struct Changes {
    json: Vec<Arc<str>>,
    /// Names of what is not there any more.
    gone: Vec<String>,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.json.is_empty() && self.gone.is_empty()
    }
}

/// The differences from `told` to `now`, as many as there is `room` for: those after the `last` one first, so that each has its turn.
/// `told` has them afterwards.
fn changes(told: &mut Named, now: &Named, room: &mut usize, last: &mut Option<Arc<str>>) -> Changes {
    let gone: Vec<Arc<str>> = told.keys().filter(|name| !now.contains_key(*name)).take(*room).cloned().collect();
    *room -= gone.len();
    gone.iter().for_each(|name| drop(told.remove(name)));
    let differs = |(name, known): &(&Arc<str>, &Known)| {
        told.get(*name).is_none_or(|last| !Arc::ptr_eq(&last.json, &known.json) && last.json != known.json)
    };
    let from = last.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let before = last.iter().flat_map(|last| now.range::<Arc<str>, _>((Bound::Unbounded, Bound::Included(last))));
    let all = now.range::<Arc<str>, _>((from, Bound::Unbounded)).chain(before);
    let changed: Vec<(Arc<str>, Known)> =
        all.filter(differs).take(*room).map(|(name, known)| (name.clone(), known.clone())).collect();
    *room -= changed.len();
    if *room == 0 {
        *last = changed.last().map(|(name, _)| name.clone()).or(last.take());
    }
    let json = changed.iter().map(|(_, known)| known.json.clone()).collect();
    told.extend(changed);
    Changes { json, gone: gone.iter().map(|name| name.to_string()).collect() }
}

#[cfg(test)]
mod tests {
    use proto::Alive;
    use serde_json::Value;

    use super::*;

    /// Each worker with the time of its heartbeat and its lane-steps.
    fn workers(before: &Standing, workers: &[(String, f64, u64)], outages: Vec<&'static str>) -> Standing {
        let alive: Vec<Alive> = workers.iter().map(|w| Alive { lane_steps: w.2, ..Alive::default() }).collect();
        let workers = workers.iter().zip(&alive).map(|((name, heard, _), alive)| (name.as_str(), *heard, alive));
        before.next([("r", &7)].into_iter(), workers, outages)
    }

    fn fleet(n: usize, heard: f64, lane_steps: u64) -> Vec<(String, f64, u64)> {
        (0..n).map(|i| (format!("w{i:05}"), heard, lane_steps)).collect()
    }

    fn message(told: &mut Told, now: &Standing) -> Option<(Value, bool)> {
        told.next(now).map(|(text, more)| (serde_json::from_str(&text).expect("JSON"), more))
    }

    #[test]
    fn a_viewer_gets_everything_once_and_then_only_what_changes() {
        let mut told = Told::default();
        let first = workers(&Standing::default(), &fleet(3, 1.0, 5), vec![]);
        let (full, more) = message(&mut told, &first).expect("a message");
        assert_eq!((&full["full"], &full["runs"], more), (&json!(true), &json!([7]), false));
        assert_eq!(full["workers"].as_array().map(Vec::len), Some(3));
        assert_eq!(message(&mut told, &first), None);
        // Heard again, with the same numbers; then one changes and another is gone.
        let again = workers(&first, &fleet(3, 2.0, 5), vec![]);
        assert_eq!(message(&mut told, &again), None);
        let mut fewer = fleet(2, 3.0, 5);
        fewer[1].2 = 6;
        let changed = workers(&again, &fewer, vec!["store"]);
        let (changes, _) = message(&mut told, &changed).expect("a message");
        assert_eq!((&changes["full"], &changes["runs"], &changes["outages"]), (&json!(false), &json!([]), &json!(["store"])));
        assert_eq!((&changes["workers"][0]["name"], &changes["workers"][1]), (&json!("w00001"), &Value::Null));
        assert_eq!(changes["gone"], json!({ "runs": [], "workers": ["w00002"] }));
        let (back, _) = message(&mut told, &workers(&changed, &fewer, vec![])).expect("the end of the outage");
        assert_eq!((&back["workers"], &back["outages"]), (&json!([]), &json!([])));
    }

    #[test]
    fn no_message_is_large_and_what_has_no_room_comes_next() {
        let n = 10_000;
        let mut told = Told::default();
        let mut now = workers(&Standing::default(), &fleet(n, 0.0, 0), vec![]);
        let mut seen = 0;
        loop {
            let (text, more) = told.next(&now).expect("a message");
            assert!(text.len() < MOST * 400, "{} bytes", text.len());
            let message: Value = serde_json::from_str(&text).expect("JSON");
            seen += message["workers"].as_array().map_or(0, Vec::len);
            if !more {
                break;
            }
        }
        assert_eq!(seen, n);
        let mut told_late = std::collections::HashSet::new();
        // Of what changes several times before there is room, only the last state is told.
        for steps in 1..4 {
            now = workers(&now, &fleet(n, steps as f64, steps), vec![]);
            let (message, more) = message(&mut told, &now).expect("a message");
            let workers = message["workers"].as_array().expect("a list");
            assert!(more && workers.len() == MOST && workers.iter().all(|w| w["alive"]["lane_steps"] == json!(steps)));
            let names = workers.iter().map(|w| w["name"].to_string());
            assert!(names.into_iter().all(|name| told_late.insert(name)), "the others come first");
        }
        // Each had its turn: those of the last message only are up to date.
        let left = std::iter::from_fn(|| message(&mut told, &now)).map(|(m, _)| m["workers"].as_array().map_or(0, Vec::len));
        assert_eq!(left.sum::<usize>(), n - MOST);
    }
}
