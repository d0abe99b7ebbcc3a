//! Other services that the dashboard uses or links to.

mod edits;
mod traces;

pub use edits::{EditUrl, Edits};
pub use traces::TraceUrl;

#[derive(Clone, Default)]
pub struct OtherServices {
    pub traces: Option<TraceUrl>,
    pub edits: Option<Edits>,
}
