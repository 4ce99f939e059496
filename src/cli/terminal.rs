//! Progress, problems and notes of a run on the terminal.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::render;
use crate::progress::{Observer, Problem, Progress};

/// Shows a progress bar if stderr is a terminal, and prints problems and notes to stderr as lines.
pub struct TerminalObserver {
    bar: ProgressBar,
    quiet: bool,
}

impl TerminalObserver {
    /// Makes an observer for work on `name`. A quiet one prints problems only.
    pub fn new(name: &str, quiet: bool) -> Self {
        let target = if quiet || !io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(4)
        };
        let bar = ProgressBar::with_draw_target(None, target).with_prefix(name.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{prefix}: {wide_msg}") {
            bar.set_style(style);
        }
        TerminalObserver { bar, quiet }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn line(&self, text: &str) {
        // The bar, if any, is drawn again below the line.
        self.bar.suspend(|| render::print_stderr(text));
    }
}

impl Observer for TerminalObserver {
    fn progress(&self, progress: &Progress) {
        self.bar.set_message(describe(progress));
    }

    fn problem(&self, problem: &Problem) {
        self.line(&format!("{}: {}", render::printable(&problem.path), problem.reason));
    }

    fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }
}

/// Returns the bytes done, the members if they are counted, the rate and, if a total is known, the percentage and the
/// time left.
pub fn describe(progress: &Progress) -> String {
    let seconds = progress.elapsed.as_secs_f64();
    let mut text = render::bytes(progress.bytes);
    if progress.members > 0 {
        text += &format!(", {}", render::count(progress.members, "member"));
    }
    if seconds >= 1.0 {
        let rate = progress.bytes as f64 / seconds;
        text += &format!(", {}/s", render::bytes(rate as u64));
        if let Some(total) = progress.bytes_total.filter(|total| *total >= progress.bytes && rate >= 1.0) {
            let left = Duration::from_secs_f64((total - progress.bytes) as f64 / rate);
            text += &format!(", {} % of {}, ", percent(progress.bytes, total), render::bytes(total));
            text += &format!("{} left", render::age(left));
        }
    }
    text
}

fn percent(part: u64, whole: u64) -> u64 {
    if whole == 0 { 100 } else { u64::try_from(u128::from(part) * 100 / u128::from(whole)).unwrap_or(100) }
}
