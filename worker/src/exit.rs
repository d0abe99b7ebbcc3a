//! Exit codes of a worker besides 0 and 1, for the platform that starts it again.

/// A device of this machine is faulty: another machine should do the work.
pub const FAULTY_DEVICE: u8 = 3;
/// The devices hang.
pub const HUNG: u8 = 4;
