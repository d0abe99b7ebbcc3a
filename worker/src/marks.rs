//! Marks of attempts that have begun (*io*): which images seem to kill their workers.
//!
//! A worker writes a mark before its devices start on an image, and deletes it when the attempt ends or saves a checkpoint. A mark
//! that stays is an attempt that never ended. One broken machine must not condemn a healthy image, so a node has a limited say.

use std::collections::BTreeMap;

use proto::{Job, keys};
use store::{ErrorKind, Store};

use crate::fate::JobError;

/// An image is projected alone after this many attempts that never ended.
pub const SUSPECT: usize = 2;
/// It fails after this many of them, where each node counts for at most [`MAX_OF_A_NODE`] ...
const MAX_UNENDED: usize = 5;
const MAX_OF_A_NODE: usize = 3;
/// ... or after this many of any nodes, so that it ends in a fleet of one node, too.
const MAX_OF_ANY_NODE: usize = 10;

/// The content of a mark: who began the attempt, and on which node.
pub fn mark(worker: &str, node: &str) -> Vec<u8> {
    format!("{worker}\n{node}\n").into_bytes()
}

/// The node of a mark. Earlier versions wrote the worker's name only, which then stands for its node.
fn node_of(mark: &[u8]) -> String {
    let text = String::from_utf8_lossy(mark);
    let mut lines = text.lines();
    let worker = lines.next().unwrap_or_default();
    lines.next().unwrap_or(worker).to_owned()
}

/// Whether an image fails for its attempts that never ended. `nodes` are those that began them.
fn is_given_up(nodes: &[String]) -> bool {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes {
        *counts.entry(node).or_default() += 1;
    }
    let counted: usize = counts.values().map(|count| (*count).min(MAX_OF_A_NODE)).sum();
    counted >= MAX_UNENDED || nodes.len() >= MAX_OF_ANY_NODE
}

/// How many earlier attempts at the image began and never ended. An image with too many is an error, and its marks are deleted.
pub async fn unended(results: &Store, job: &Job) -> Result<usize, JobError> {
    let before = results.list(&keys::attempts(&job.image)).map_err(JobError::Results)?;
    let before = before.all().await.map_err(JobError::Results)?;
    if before.len() < MAX_UNENDED {
        return Ok(before.len());
    }
    let mut nodes = Vec::new();
    for object in &before {
        match results.get(&object.key).await {
            Ok(mark) => nodes.push(node_of(&mark)),
            // Its attempt has ended meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(JobError::Results(error)),
        }
    }
    if !is_given_up(&nodes) {
        return Ok(nodes.len());
    }
    for object in &before {
        results.delete(&object.key).await.map_err(JobError::Results)?;
    }
    let attempts = nodes.len();
    nodes.sort();
    nodes.dedup();
    Err(JobError::Quarantined { image: job.image.clone(), attempts, nodes: nodes.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_of_a_mark_is_read_and_that_of_an_old_mark_is_its_worker() {
        assert_eq!(node_of(&mark("gpu-7-4711", "gpu-7")), "gpu-7");
        assert_eq!(node_of(&mark("local-4711", "")), "");
        assert_eq!(node_of(b"gpu-7-4711"), "gpu-7-4711");
        assert_eq!(node_of(b""), "");
    }

    #[test]
    fn one_node_alone_condemns_an_image_late_and_several_do_early() {
        for (nodes, expected) in [
            ("", false),
            ("aaaa b", false),
            ("aaa b", false),
            ("aaa bb", true),
            ("a b c d", false),
            ("a b c d e", true),
            ("aaaaa", false),
            ("aaaaaaaaa", false),
            ("aaaaaaaaa b", true),
            ("aaaaaaaaaa", true),
        ] {
            let all: Vec<String> = nodes.chars().filter(|c| *c != ' ').map(String::from).collect();
            assert_eq!(is_given_up(&all), expected, "{nodes}");
        }
    }

    #[tokio::test]
    async fn attempts_of_one_broken_node_leave_an_image_to_the_others() {
        let dir = tempfile::tempdir().expect("writable");
        let results = Store::open(&dir.path().to_string_lossy()).await.expect("a folder");
        let job = harness::job();
        let put = async |count: usize, node: &str| {
            let key = keys::attempt(&job.image, &format!("{count:012x}"));
            results.put(&key, mark("worker", node)).await.expect("writable");
        };
        for count in 0..7 {
            put(count, "broken").await;
        }
        assert_eq!(unended(&results, &job).await.expect("not given up"), 7);
        put(7, "whole").await;
        put(8, "whole").await;
        let error = unended(&results, &job).await.expect_err("given up");
        assert!(matches!(error, JobError::Quarantined { attempts: 9, nodes: 2, .. }), "{error:?}");
        assert_eq!(unended(&results, &job).await.expect("the marks are gone"), 0);
    }
}
