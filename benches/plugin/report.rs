//! Figures as a table and as JSON.

use serde_json::{Value, json};

/// Milliseconds of repetitions.
#[derive(Debug, Default, Clone)]
pub struct Times(Vec<f64>);

impl Times {
    pub fn add(&mut self, milliseconds: f64) {
        self.0.push(milliseconds);
        self.0.sort_by(f64::total_cmp);
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The smallest that this part of all is not above.
    fn quantile(&self, part: f64) -> f64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let at = (part * self.0.len() as f64).ceil() as usize;
        self.0.get(at.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn p50(&self) -> f64 {
        self.quantile(0.5)
    }

    pub fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    pub fn json(&self) -> Value {
        json!({ "n": self.0.len(), "p50": self.p50(), "p99": self.p99(), "min": self.0.first() })
    }
}

/// A table that is printed when it is complete; its rows go into the JSON too.
pub struct Table {
    title: String,
    columns: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: impl Into<String>, columns: &[&'static str]) -> Self {
        Self { title: title.into(), columns: columns.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.columns[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        let line = |cells: Vec<&str>| {
            let cells = cells.iter().zip(&widths).enumerate().map(|(at, (cell, width))| match at {
                0 => format!("{cell:width$}", width = *width),
                _ => format!("{cell:>width$}", width = *width),
            });
            println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        };
        println!("\n### {}\n", self.title);
        line(self.columns.clone());
        let rules: Vec<String> = widths
            .iter()
            .enumerate()
            .map(
                |(at, width)| {
                    if at == 0 { "-".repeat(*width) } else { "-".repeat(width - 1) + ":" }
                },
            )
            .collect();
        line(rules.iter().map(String::as_str).collect());
        for row in &self.rows {
            line(row.iter().map(String::as_str).collect());
        }
    }
}

/// A few digits, as many as mean something.
pub fn ms(value: f64) -> String {
    match value {
        v if v.is_nan() => "-".to_owned(),
        v if v < 1.0 => format!("{v:.3}"),
        v if v < 100.0 => format!("{v:.2}"),
        v => format!("{v:.0}"),
    }
}

pub fn ratio(of: f64, by: f64) -> String {
    if of.is_nan() || by.is_nan() { "-".to_owned() } else { format!("{:.2}", of / by) }
}
