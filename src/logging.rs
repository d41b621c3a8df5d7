//! Log lines on standard error: text for people and journald, JSON for collectors.
//!
//! JSON is written here: a line is the event's own fields, and below `operation` those of the spans
//! around it (what is done, to which volume).

use std::fmt;
use std::io;
use std::time::SystemTime;

use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people; the journal has its own time stamps
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Logs from now on. `RUST_LOG` counts more than `debug`; it takes targets and levels
/// (`warn,cinder_docker_driver=debug`): what only `EnvFilter` knows, spans and fields, would cost a
/// regular expression engine in memory.
pub fn start(debug: bool, format: Format) {
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::INFO };
    let asked = std::env::var("RUST_LOG").ok().filter(|asked| !asked.is_empty());
    let filter = asked
        .and_then(|asked| asked.parse().ok())
        .unwrap_or_else(|| Targets::new().with_target("cinder_docker_driver", level));
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        Format::Json => {
            registry.with(layer.fmt_fields(JsonFields).event_format(JsonLines)).init();
        }
        Format::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            registry.with(layer.without_time()).init();
        }
        Format::Text => registry.with(layer).init(),
    }
}

/// Fields as members of an object, each followed by a comma.
struct JsonFields;

impl<'w> FormatFields<'w> for JsonFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut members = Members { writer, result: Ok(()) };
        fields.record(&mut members);
        members.result
    }
}

struct Members<'w> {
    writer: Writer<'w>,
    result: fmt::Result,
}

impl Members<'_> {
    fn member(&mut self, name: &str, value: &Value) {
        if self.result.is_ok() {
            self.result = write!(self.writer, "{}:{value},", Value::from(name));
        }
    }
}

impl Visit for Members<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field.name(), &Value::from(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field.name(), &Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field.name(), &Value::from(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field.name(), &Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field.name(), &Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.member(field.name(), &Value::from(value));
    }
}

struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = String::new();
        context.format_fields(Writer::new(&mut fields), event)?;
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let level = event.metadata().level();
        write!(
            writer,
            "{{\"time\":\"{time}\",\"level\":\"{level}\",{}",
            fields.trim_end_matches(',')
        )?;
        let mut operation = String::new();
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(fields) = span.extensions().get::<FormattedFields<N>>() {
                operation.push_str(fields);
            }
        }
        if !operation.is_empty() {
            write!(writer, ",\"operation\":{{{}}}", operation.trim_end_matches(','))?;
        }
        writeln!(writer, "}}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_an_object_with_its_operation_whatever_is_in_it() {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || to.clone())
            .fmt_fields(JsonFields)
            .event_format(JsonLines)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("ready");
            let span = tracing::info_span!("operation", op = "Mount", volume = "a\"b\n,");
            let _entered = span.enter();
            tracing::warn!(elapsed_ms = 7_u64, ok = false, error = "x,\u{1}", "said \"no\",");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let rows: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0]["message"], "ready");
        assert_eq!(rows[0].get("operation"), None);
        assert_eq!(rows[1]["level"], "WARN");
        assert_eq!(rows[1]["elapsed_ms"], 7);
        assert_eq!(rows[1]["ok"], false);
        assert_eq!(rows[1]["error"], "x,\u{1}");
        assert_eq!(rows[1]["message"], "said \"no\",");
        assert_eq!(rows[1]["operation"], serde_json::json!({ "op": "Mount", "volume": "a\"b\n," }));
    }
}
