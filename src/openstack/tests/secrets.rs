//! Promise 7: secrets stay secret.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::toy::{PASSWORD, Reply, TOKEN, Toy};
use super::{cloud, holder, id, is_read};
use crate::openstack::AttachFlow;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn neither_log_nor_debug_nor_error_holds_a_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // While there is just one dispatcher, the threads of other tests decide what is worth
    // logging, and have none: a second one makes tracing ask both.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);

    let chap = "chap-s3cret";
    let toy = Toy::start(move |request| match request.action() {
        Some("os-reserve") => Some(Reply::empty(202)),
        Some("os-initialize_connection") => Some(Reply::Json(
            200,
            json!({"connection_info": {"driver_volume_type": "iscsi",
                                       "data": {"auth_password": chap}}}),
        )),
        // Answers that echo what they were sent.
        Some("os-attach") => Some(Reply::Raw(400, Vec::new(), format!("token {TOKEN}-1, {chap}"))),
        _ => is_read(request).then(|| Reply::Raw(200, Vec::new(), format!("{TOKEN} {chap}"))),
    })
    .await;
    let cloud = cloud(&toy);
    cloud.facts().await.unwrap();
    // Every call site is known by now.
    tracing::callsite::rebuild_interest_cache();
    let reservation = cloud.reserve(AttachFlow::Actions, id()).await.unwrap();
    let info = cloud.connect(&reservation, &json!({})).await.unwrap();
    let attach = cloud.complete(&reservation, &holder()).await.unwrap_err();
    let read = cloud.volume(id()).await.unwrap_err();

    let mut all = format!("{cloud:?} {info:?} {attach:?} {attach} {read:?} {read}");
    let lines = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(lines.contains("cloud call") && lines.contains("elapsed_ms"));
    assert!(lines.contains("req-toy"), "{lines}");
    all += &lines;
    for secret in [PASSWORD, TOKEN, chap] {
        assert!(!all.contains(secret), "{secret} in {all}");
    }
}
