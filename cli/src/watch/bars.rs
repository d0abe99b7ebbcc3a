//! Bars made of characters.

use client::api::RunStatus;
use ratatui::style::Color;
use ratatui::text::{Line, Span};

use super::state::{State, finished, succeeded};

/// Of `width` cells: images that succeeded, that failed, and that are left.
pub fn progress(state: &State, run: &RunStatus, width: usize) -> Line<'static> {
    let cells = |images: usize| (images.min(run.images) as f64 / run.images.max(1) as f64 * width as f64) as usize;
    let done = cells(succeeded(run));
    // A single failure among many images is visible.
    let failed = (cells(finished(run)) - done).max(usize::from(run.failed > 0)).min(width);
    let done = done.min(width - failed);
    vec![
        Span::styled("█".repeat(done), state.style(Color::Green)),
        Span::styled("▒".repeat(failed), state.style(Color::Red)),
        Span::raw("░".repeat(width - done - failed)),
    ]
    .into()
}

/// A value on a scale from 0 to `most`, with its standard error to both sides.
pub fn value(state: &State, value: f64, error: Option<f64>, most: f64, width: usize) -> Line<'static> {
    let cell = |value: f64| if most > 0.0 { ((value / most).clamp(0.0, 1.0) * width as f64).round() as usize } else { 0 };
    let error = error.unwrap_or(0.0);
    let (low, middle, high) = (cell(value - error), cell(value), cell(value + error));
    let whole = if low < middle { low } else { middle };
    vec![
        Span::styled("█".repeat(whole), state.style(Color::Cyan)),
        Span::styled("▓".repeat(middle - whole), state.style(Color::Cyan)),
        Span::raw("─".repeat(high - middle)),
    ]
    .into()
}
