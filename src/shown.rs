//! Text of others (names, options, answers of a cloud) as it stands in our own sentences: on one
//! line, without control characters, and no longer than can be read.

/// So much of a foreign text stands in a sentence, in characters.
const LIMIT: usize = 60;

/// The text with everything unprintable escaped; what is longer than a line is cut.
///
/// ```
/// use cinder_docker_driver::shown::shown;
/// assert_eq!(shown("a\nb"), r"a\nb");
/// assert!(shown(&"x".repeat(1000)).ends_with('…'));
/// ```
pub fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LIMIT).is_some() {
        out.push('…');
    }
    out
}
