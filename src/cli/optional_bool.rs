//! Options that are on without a value: `--no-verify`, `--no-verify=false`.

use clap::Arg;

/// Name of the value of an option that is on without one: `--no-verify`, `--no-verify=false`.
pub(super) const BOOL: &str = "BOOL";

/// Lets the options whose value is [`BOOL`] be given without it.
pub(super) fn with_optional_bool(option: Arg) -> Arg {
    match option.get_value_names() {
        Some([name]) if name == BOOL => option.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => option,
    }
}
