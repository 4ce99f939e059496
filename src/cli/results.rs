//! The results of a verb that works on several things one after another.

use serde::Serialize;

use super::documents::ItemDocument;
use super::render::{self, Format};
use super::{Context, report};
use crate::error::{Error, ErrorKind, Result};

/// What a verb did with each of several things. A failure with one of several is reported and the others are done all
/// the same; a failure with the only one is the error of the verb.
pub struct Results<T> {
    is_single: bool,
    items: Vec<ItemDocument<T>>,
    codes: Vec<u8>,
}

impl<T: Serialize> Results<T> {
    /// Makes a list for the results of `count` things.
    pub fn new(count: usize) -> Results<T> {
        Results { is_single: count == 1, items: Vec::new(), codes: Vec::new() }
    }

    /// Adds what was done with a thing, and the exit code that it counts as.
    pub fn add(&mut self, document: T, code: u8) {
        self.items.push(ItemDocument::Done(document));
        self.codes.push(code);
    }

    /// Reports the failure with the thing `name` and adds it. Returns it if there are no other things.
    pub fn fail(&mut self, name: impl Into<String>, error: Error) -> Result<()> {
        if self.is_single {
            return Err(error);
        }
        report(&error);
        self.skip(name, &error);
        Ok(())
    }

    /// Adds that nothing was done with the thing `name`, without a report.
    pub fn skip(&mut self, name: impl Into<String>, reason: &Error) {
        self.items.push(ItemDocument::Failed { name: name.into(), failure: reason.into() });
        self.codes.push(reason.kind().exit_code());
    }

    /// Adds the result of work on the thing `name`; a document counts as exit code 0.
    pub fn add_result(&mut self, name: impl Into<String>, result: Result<T>) -> Result<()> {
        match result {
            Ok(document) => {
                self.add(document, 0);
                Ok(())
            }
            Err(error) => self.fail(name, error),
        }
    }

    /// Prints the documents for JSON, and returns the most severe exit code.
    pub fn finish(self, context: &Context) -> Result<u8> {
        if context.format == Format::Json {
            render::print_json(&self.items)?;
        }
        Ok(most_severe(&self.codes))
    }
}

/// Returns the most severe exit code: a failure is more severe than damage, damage than an incomplete run.
fn most_severe(codes: &[u8]) -> u8 {
    let order = [
        ErrorKind::Failed,
        ErrorKind::Interrupted,
        ErrorKind::Terminated,
        ErrorKind::NotFound,
        ErrorKind::Busy,
        ErrorKind::Damage,
        ErrorKind::Incomplete,
    ];
    let listed = order.into_iter().map(ErrorKind::exit_code).find(|code| codes.contains(code));
    listed.unwrap_or_else(|| codes.iter().copied().max().unwrap_or(0))
}
