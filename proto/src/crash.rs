//! Points between two steps that others can see. A test names one in `BASIN_CRASH_AT`, and the process ends there as if by a power
//! cut. What is shipped is built with the release profile and has none of this, not even the variable's name (infra/images/rootfs.sh).

use strum::VariantArray;

/// A point; its name is the variant's. The worker's come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, VariantArray)]
pub enum CrashPoint {
    /// Worker: a job was taken, and nothing done.
    JobTaken,
    /// Worker: the fleet was told that the job begins.
    StartTold,
    /// Worker: the attempt is on record.
    AttemptRecorded,
    /// Worker: a checkpoint is in the store, and the attempt still counts as one that never ended.
    CheckpointSaved,
    /// Worker: a checkpoint is in the store, and the attempt is off the record.
    CheckpointCounted,
    /// Worker: the first of the result's objects is in the store.
    ObjectUploaded,
    /// Worker: all objects of the result are in the store.
    ObjectsUploaded,
    /// Worker: the attempt has claimed that it commits.
    Claimed,
    /// Worker: the commit marker is in the store.
    Committed,
    /// Worker: the checkpoint is deleted.
    CheckpointDeleted,
    /// Worker: the attempt is off the record.
    AttemptDeleted,
    /// Worker: the fleet was told of the result.
    SuccessTold,
    /// Worker: the job is acknowledged.
    SuccessSettled,
    /// Worker: the failure's marker is in the store.
    FailureRecorded,
    /// Worker: the fleet was told of the failure.
    FailureTold,
    /// Worker: the job is rejected.
    FailureSettled,
    /// Worker: the fleet was told that the job is given back.
    ReleaseTold,
    /// Worker: the job is given back.
    ReleaseSettled,
    /// Coordinator: `run.json` is in the run's place, and the run is in no index.
    RunBegun,
    /// Coordinator: the run is in the index, without an order.
    RunIndexed,
    /// Coordinator: the run is on record, and the client that asked for it was not told.
    RunControlled,
    /// Coordinator: jobs are on the queue.
    JobsPublished,
    /// Coordinator: an event was taken in, and not acknowledged.
    EventTaken,
    /// Coordinator: a dead letter's failure is on record, and the letter not acknowledged.
    DeadLetterTaken,
    /// Coordinator: the run's tables are written.
    TablesWritten,
    /// Coordinator: what lost attempts left is deleted, and the run not yet over.
    Swept,
    /// Coordinator: the run is on record as finished.
    RunFinished,
}

impl CrashPoint {
    /// The worker's points.
    pub const WORKER: &[CrashPoint] = CrashPoint::VARIANTS.split_at(CrashPoint::RunBegun as usize).0;

    /// The coordinator's points.
    pub const COORDINATOR: &[CrashPoint] = CrashPoint::VARIANTS.split_at(CrashPoint::RunBegun as usize).1;

    /// Passes the point, unless a test wants the process to end here.
    pub fn pass(self) {
        if cfg!(debug_assertions) && std::env::var_os("BASIN_CRASH_AT").is_some_and(|at| *at == *format!("{self:?}")) {
            std::process::abort();
        }
    }
}
