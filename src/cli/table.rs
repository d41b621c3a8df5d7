//! Columns for people.

use std::fmt::Write;

/// A title and rows, each cell as wide as its column; a row's lines of detail stand below it.
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: &[([String; N], Vec<String>)],
) -> String {
    let mut widths = titles.map(|title| title.chars().count());
    for (cells, _) in rows {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let line = |cells: &[String; N]| {
        let mut shown = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(shown, "{cell:width$}   ");
        }
        format!("{}\n", shown.trim_end())
    };
    text.push_str(&line(&titles.map(str::to_owned)));
    for (cells, details) in rows {
        text.push_str(&line(cells));
        for detail in details {
            let _ = writeln!(text, "    {detail}");
        }
    }
    text
}

/// A JSON value as a cell: a dash for nothing.
pub(super) fn cell(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "-".to_owned(),
        serde_json::Value::String(text) if text.is_empty() => "-".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
