//! Prints an error with its causes, for the two places that need all of it: a log line and the
//! sentence that Docker shows to a person.

use std::error::Error;
use std::fmt;

/// Displays an error and every `source` below it, joined with `: `.
///
/// Errors in this crate never repeat their source in their own text, so nothing is said twice.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
