//! The server over a real socket, called with the bytes that Docker and Podman send. The driver is
//! a toy: what is under test is all that stands between an engine and a driver.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "support/toy_plugin.rs"]
mod toy_plugin;
#[path = "support/unix_http.rs"]
mod unix_http;

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cinder_docker_driver::docker::protocol;
use cinder_docker_driver::docker::server::Limits;
use serde_json::json;

use toy_plugin::{Page, Plugin, TOGETHER};
use unix_http::{Client, PATIENCE};

const NAMED_CALLS: [&str; 6] = ["Create", "Remove", "Mount", "Unmount", "Path", "Get"];

fn volume_call(call: &str) -> String {
    format!("/VolumeDriver.{call}")
}

// What the answers are.

#[test]
fn activate_and_capabilities_are_answered_without_a_body() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for body in ["", "{}\n", "\n"] {
        let activate = client.call("/Plugin.Activate", body);
        assert_eq!(activate.status, 200);
        assert_eq!(activate.json(), json!({ "Implements": ["VolumeDriver"] }));
        assert_eq!(
            activate.header("content-type"),
            Some("application/vnd.docker.plugins.v1.2+json")
        );
        let capabilities = client.call("/VolumeDriver.Capabilities", body);
        assert_eq!(capabilities.json(), json!({ "Capabilities": { "Scope": "global" } }));
        assert_eq!(client.call("/VolumeDriver.List", body).status, 200);
    }
}

#[test]
fn every_call_is_answered_as_documented() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    let body = r#"{"Name":"v2","Opts":{"size":"2","type":"ssd"}}"#.to_owned() + "\n";
    let answer = client.call("/VolumeDriver.Create", body);
    assert_eq!((answer.status, answer.json()), (200, json!({ "Err": "" })));
    plugin.expect(r#"create "v2" {"size": "2", "type": "ssd"}"#);
    plugin.expect("created");

    let answer = client.call("/VolumeDriver.Mount", r#"{"Name":"v2","ID":"abc"}"#);
    assert_eq!(answer.json(), json!({ "Mountpoint": "/mnt/v2", "Err": "" }));
    plugin.expect(r#"mount "v2" "abc""#);
    plugin.expect("mounted");

    let answer = client.call("/VolumeDriver.Unmount", r#"{"Name":"v2","ID":"abc"}"#);
    assert_eq!((answer.status, answer.json()), (200, json!({ "Err": "" })));
    plugin.expect(r#"unmount "v2" "abc""#);

    let answer = client.call("/VolumeDriver.Path", r#"{"Name":"mounted"}"#);
    assert_eq!(answer.json(), json!({ "Mountpoint": "/mnt/mounted", "Err": "" }));
    let answer = client.call("/VolumeDriver.Path", r#"{"Name":"v2"}"#);
    assert_eq!(answer.json(), json!({ "Mountpoint": "", "Err": "" }));

    let volume = client.call("/VolumeDriver.Get", r#"{"Name":"mounted"}"#).json();
    assert_eq!(volume["Err"], "");
    assert_eq!(volume["Volume"]["Name"], "mounted");
    assert_eq!(volume["Volume"]["Mountpoint"], "/mnt/mounted");
    assert_eq!(volume["Volume"]["CreatedAt"], "2026-11-22T05:00:00Z");
    assert_eq!(volume["Volume"]["Status"]["nested"], json!({ "a": [1, null] }));
    let volume = client.call("/VolumeDriver.Get", r#"{"Name":"v2"}"#).json();
    assert_eq!(volume["Volume"]["Mountpoint"], "");
    assert!(!volume["Volume"].as_object().unwrap().contains_key("CreatedAt"), "{volume}");

    let answer = client.call("/VolumeDriver.Remove", r#"{"Name":"v2"}"#);
    assert_eq!((answer.status, answer.json()), (200, json!({ "Err": "" })));
    plugin.expect(r#"remove "v2""#);
}

#[test]
fn an_operators_request_is_confirmed_by_an_id_that_is_not_empty() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for (body, done, event) in [
        (r#"{"Name":"v2"}"#, false, r#"Release "v2" None"#),
        (r#"{"Name":"v2","ID":""}"#, false, r#"Release "v2" None"#),
        (r#"{"Name":"v2","ID":"abc"}"#, true, r#"Release "v2" Some("abc")"#),
    ] {
        let answer = client.call("/Operator.Release", body);
        assert_eq!((answer.status, answer.json()), (200, json!({ "Done": done })));
        plugin.expect(event);
    }
    assert_eq!(client.call("/Operator.Release", "").status, 400);
}

#[test]
fn names_pass_through_byte_for_byte() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    let long = "x".repeat(300);
    for name in ["../../etc", "/etc", "a/b", "a\nb", "ünï", " a ", "a%2Fb", &long, "V4"] {
        let body = json!({ "Name": name }).to_string();
        let answer = client.call("/VolumeDriver.Get", body).json();
        assert_eq!(answer["Volume"]["Name"], name);
    }
}

#[test]
fn a_failure_is_an_err_with_a_status_that_podman_believes() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for call in NAMED_CALLS {
        let answer = client.call(&volume_call(call), r#"{"Name":"fail","ID":"i"}"#);
        assert_eq!((answer.status, answer.error().as_str()), (500, "quota exceeded"));
        let answer = client.call(&volume_call(call), r#"{"Name":"bad","ID":"i"}"#);
        assert_eq!((answer.status, answer.error().as_str()), (400, "no such option"));
    }
}

#[test]
fn a_mount_without_a_usable_directory_is_a_failure_and_taken_back() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for name in ["nowhere", "relative"] {
        let body = json!({ "Name": name, "ID": "i" }).to_string();
        let answer = client.call("/VolumeDriver.Mount", body);
        assert_eq!(answer.status, 500);
        assert!(answer.error().contains("no usable path"));
        plugin.expect(&format!("mount {name:?} \"i\""));
        plugin.expect("mounted");
        plugin.expect(&format!("uncollected {name:?} \"i\""));
    }
}

#[test]
fn a_crash_in_an_operation_is_one_error_answer() {
    let plugin = Plugin::with_pages(&[Page::Crashes]);
    let mut client = plugin.client();
    for call in NAMED_CALLS {
        let answer = client.call(&volume_call(call), r#"{"Name":"crash","ID":"i"}"#);
        assert_eq!(answer.status, 500);
        assert!(answer.error().contains("bug"), "{answer:?}");
    }
    assert!(client.call("/VolumeDriver.List", "").error().contains("bug"));
    assert_eq!(client.call("/VolumeDriver.Get", r#"{"Name":"v"}"#).status, 200);
    drop(client);
    assert!(!plugin.stop().iter().any(|event| event.starts_with("uncollected")));
}

#[test]
fn the_caller_is_the_process_at_the_other_end() {
    let plugin = Plugin::start();
    let answer = plugin.client().call("/VolumeDriver.Get", r#"{"Name":"v"}"#).json();
    let status = &answer["Volume"]["Status"];
    assert_eq!(status["pid"], std::process::id());
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit(") ").next().unwrap().split(' ').nth(19).unwrap();
    assert_eq!(status["start"].to_string(), start);
}

// What requests may look like.

#[test]
fn requests_of_docker_podman_and_others_are_taken() {
    let plugin = Plugin::start();
    let body = r#"{"Name":"v"}"#;
    let length = body.len();
    for head in [
        // Docker 20.10 and 26.1, older ones, Podman, the helpers' own test, HTTP/1.0.
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: \r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n",
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: plugin.moby.localhost\r\n",
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: %2Frun%2Fdocker%2Fplugins%2Fcinder.sock\r\n",
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: /run/docker/plugins/cinder.sock\r\n",
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: plugin\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\n",
        "POST /VolumeDriver.Get HTTP/1.1\r\nContent-Type: application/json\r\n",
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: x\r\nContent-Type: text/html; charset=x\r\n",
        "POST http://plugin/VolumeDriver.Get HTTP/1.1\r\nHost: plugin\r\n",
        "POST /VolumeDriver.Get HTTP/1.0\r\n",
    ] {
        let mut client = plugin.client();
        client.send(format!("{head}Content-Length: {length}\r\n\r\n{body}"));
        let answer = client.answer();
        assert_eq!(answer.status, 200, "{head}");
        assert_eq!(answer.json()["Volume"]["Name"], "v");
    }
    let mut client = plugin.client();
    client.send("POST /VolumeDriver.Get HTTP/1.1\r\nHost:\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3\r\n{\"N\r\n9\r\name\":\"v\"}\r\n0\r\n\r\n");
    assert_eq!(client.answer().json()["Volume"]["Name"], "v");
}

#[test]
fn a_request_may_come_byte_by_byte() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    let body = r#"{"Name":"v"}"#;
    let request = format!(
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: \r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    for byte in request.as_bytes() {
        client.send([*byte]);
    }
    assert_eq!(client.answer().status, 200);
}

#[test]
fn opts_may_be_missing_or_null_and_hold_numbers() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for (body, options) in [
        (r#"{"Name":"v"}"#, "{}"),
        (r#"{"Name":"v","Opts":null}"#, "{}"),
        (r#"{"Name":"v","Opts":{}}"#, "{}"),
        (r#"{"name":"v","OPTS":{"size":20}}"#, r#"{"size": "20"}"#),
        (r#"{"Name":"v","Opts":{"a":true,"b":1.5}}"#, r#"{"a": "true", "b": "1.5"}"#),
    ] {
        assert_eq!(client.call("/VolumeDriver.Create", body).status, 200, "{body}");
        plugin.expect(&format!("create \"v\" {options}"));
        plugin.expect("created");
    }
}

#[test]
fn a_call_repeated_with_an_empty_body_is_refused() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for call in NAMED_CALLS {
        for body in ["", "\n", "{}", "{}\n", r#"{"Name":""}"#, r#"{"Name":null}"#, r#"{"ID":"i"}"#]
        {
            let answer = client.call(&volume_call(call), body);
            assert_eq!(answer.status, 400, "{call} {body}");
            answer.error();
        }
        client.send(format!("POST /VolumeDriver.{call} HTTP/1.1\r\nHost: \r\n\r\n"));
        assert_eq!(client.answer().status, 400, "{call} without a length");
    }
    drop(client);
    assert_eq!(plugin.stop(), Vec::<String>::new());
}

#[test]
fn a_mount_without_an_id_is_taken_as_old_engines_sent_it() {
    let plugin = Plugin::start();
    let answer = plugin.client().call("/VolumeDriver.Mount", r#"{"Name":"v"}"#);
    assert_eq!(answer.status, 200);
    plugin.expect(r#"mount "v" """#);
}

#[test]
fn malformed_bodies_are_refused_and_reach_no_driver() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    let deep = format!("{{\"Name\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    let corpus: &[&[u8]] = &[
        b"{",
        b"}",
        b"[]",
        b"null",
        b"true",
        b"7",
        b"\"v\"",
        b"v",
        b"Name=v",
        b"{\"Name\"}",
        b"{\"Name\":}",
        b"{\"Name\":\"v\"",
        b"{\"Name\":\"v\",}",
        b"{'Name':'v'}",
        b"{Name:\"v\"}",
        b"{\"Name\":\"v\"}}",
        b"{\"Name\":\"v\"}{\"Name\":\"w\"}",
        b"{\"Name\":7}",
        b"{\"Name\":true}",
        b"{\"Name\":[\"v\"]}",
        b"{\"Name\":{\"Name\":\"v\"}}",
        b"{\"Name\":\"\xff\"}",
        b"{\"Name\":\"\\ud800\"}",
        b"{\"Name\":\"a\nb\"}",
        b"{\"Name\":\"v\",\"Opts\":[],\"ID\":[]}",
        b"{\"Name\":\"v\",\"Opts\":\"size=1\",\"ID\":1}",
        b"{\"Name\":\"v\",\"Opts\":{\"size\":{}},\"ID\":{}}",
        b"\x00",
        b"\xef\xbb\xbf{\"Name\":\"v\"}",
        b"\x1f\x8b\x08\x00",
        deep.as_bytes(),
    ];
    for body in corpus {
        // Those that know no Opts or ID have nothing to refuse in them.
        for call in ["Create", "Mount"] {
            let is_about = |member: &[u8]| body.windows(member.len()).any(|part| part == member);
            if call == "Mount" && is_about(b"Opts") && !is_about(b"ID") {
                continue;
            }
            let answer = client.call(&volume_call(call), body);
            let shown = String::from_utf8_lossy(&body[..body.len().min(40)]);
            assert_eq!(answer.status, 400, "{call} {shown}");
            answer.error();
        }
    }
    assert_eq!(client.call("/VolumeDriver.Get", r#"{"Name":"v"}"#).status, 200);
    drop(client);
    assert_eq!(plugin.stop(), Vec::<String>::new());
}

#[test]
fn bodies_up_to_the_limit_are_taken_and_larger_ones_refused() {
    let plugin = Plugin::start();
    let body = |length: usize| {
        let fixed = r#"{"Name":"v","x":""}"#.len();
        format!(r#"{{"Name":"v","x":"{}"}}"#, "x".repeat(length - fixed))
    };
    assert_eq!(plugin.client().call("/VolumeDriver.Get", body(protocol::MAX_BODY)).status, 200);
    for length in [protocol::MAX_BODY + 1, 3 * protocol::MAX_BODY] {
        let answer = plugin.client().call("/VolumeDriver.Get", body(length));
        assert_eq!(answer.status, 413);
        answer.error();
    }
    // A length that is only announced is not waited for.
    let mut client = plugin.client();
    client.send(
        "POST /VolumeDriver.Get HTTP/1.1\r\nHost: \r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n",
    );
    client.send("x".repeat(0x20000));
    assert_eq!(client.answer().status, 413);
}

#[test]
fn unknown_paths_and_wrong_methods_are_refused_with_an_err() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    for path in [
        "/",
        "/VolumeDriver.Fly",
        "/VolumeDriver.get",
        "/VolumeDriver.Get/",
        "/NetworkDriver.Join",
        "//VolumeDriver.Get",
        "/Plugin.Deactivate",
    ] {
        let answer = client.call(path, r#"{"Name":"v"}"#);
        assert_eq!(answer.status, 404, "{path}");
        answer.error();
    }
    for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
        client.send(format!("{method} /VolumeDriver.Get HTTP/1.1\r\nHost: \r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.header("allow"), Some("POST"));
        answer.error();
    }
}

#[test]
fn what_is_no_http_is_refused_and_hurts_nobody() {
    let plugin = Plugin::start();
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"PRI * HTTP/2.0\r\n\r\n",
        b"\n\n\n {}",
    ] {
        let mut client = plugin.client();
        client.send(bytes);
        if !client.is_closed_by_server() {
            assert_eq!(client.answer().status, 400);
        }
    }
    assert_eq!(plugin.client().call("/Plugin.Activate", "").status, 200);
}

// Connections.

#[test]
fn a_connection_stays_open_between_calls_and_while_idle() {
    let plugin = Plugin::with_limit(Duration::from_millis(200));
    let (mut idle, mut unused) = (plugin.client(), plugin.client());
    assert_eq!(idle.call("/Plugin.Activate", "").status, 200);
    // On another connection a call runs into its deadline: longer than any limit there is here.
    let mut other = plugin.client();
    assert_eq!(other.call("/VolumeDriver.Create", r#"{"Name":"slow"}"#).status, 500);
    assert!(idle.is_idle() && unused.is_idle());
    for _ in 0..50 {
        assert_eq!(idle.call("/VolumeDriver.Get", r#"{"Name":"v"}"#).status, 200);
        assert_eq!(idle.call("/VolumeDriver.Get", "").status, 400);
        assert_eq!(idle.call("/nowhere", "").status, 404);
    }
    assert_eq!(unused.call("/VolumeDriver.Get", r#"{"Name":"v"}"#).status, 200);
    assert!(idle.is_idle() && unused.is_idle());
}

#[test]
fn many_gets_at_once_run_at_once() {
    let plugin = Plugin::start();
    let mut clients: Vec<Client> = (0..TOGETHER).map(|_| plugin.client()).collect();
    for client in &mut clients {
        client.send_call("/VolumeDriver.Get", r#"{"Name":"together"}"#);
    }
    for client in &mut clients {
        assert_eq!(client.answer().json()["Volume"]["Name"], "together");
    }
    assert_eq!(plugin.toy.gets.load(Ordering::Relaxed), TOGETHER);
}

#[test]
fn quick_calls_wait_for_no_slow_one() {
    let plugin = Plugin::with_pages(&[Page::Volumes(&["slow"])]);
    let mut busy: Vec<Client> = ["Create", "Mount", "Unmount", "Remove", "Get"]
        .into_iter()
        .map(|call| {
            let mut client = plugin.client();
            client.send_call(&volume_call(call), r#"{"Name":"slow","ID":"i"}"#);
            client
        })
        .collect();
    for event in ["create", "mount", "unmount", "remove"] {
        assert!(plugin.events.recv_timeout(PATIENCE).unwrap().starts_with(event));
    }
    let mut client = plugin.client();
    for _ in 0..10 {
        assert_eq!(client.call("/Plugin.Activate", "").status, 200);
        assert_eq!(client.call("/VolumeDriver.Capabilities", "{}").status, 200);
        assert_eq!(client.call("/VolumeDriver.Get", r#"{"Name":"v"}"#).status, 200);
        assert_eq!(client.call("/VolumeDriver.Path", r#"{"Name":"v"}"#).status, 200);
        assert!(client.call("/VolumeDriver.List", "{}").is_complete);
    }
    assert!(busy.iter_mut().all(Client::is_idle));
    plugin.toy.gate.add_permits(busy.len());
    for client in &mut busy {
        assert_eq!(client.answer().status, 200);
    }
}

// Answers that nobody collects.

#[test]
fn a_mount_runs_to_its_end_when_the_client_hangs_up_and_is_taken_back() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    client.send_call("/VolumeDriver.Mount", r#"{"Name":"slow","ID":"i"}"#);
    plugin.expect(r#"mount "slow" "i""#);
    drop(client);
    plugin.toy.gate.add_permits(1);
    plugin.expect("mounted");
    plugin.expect(r#"uncollected "slow" "i""#);
}

#[test]
fn the_driver_is_told_that_its_caller_hung_up() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    client.send_call("/VolumeDriver.Mount", r#"{"Name":"until-gone","ID":"i"}"#);
    plugin.expect(r#"mount "until-gone" "i""#);
    drop(client);
    plugin.expect("gone");
    plugin.expect("mounted");
    plugin.expect(r#"uncollected "until-gone" "i""#);
}

#[test]
fn a_create_runs_to_its_end_when_the_client_hangs_up() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    client.send_call("/VolumeDriver.Create", r#"{"Name":"slow"}"#);
    plugin.expect(r#"create "slow" {}"#);
    drop(client);
    plugin.toy.gate.add_permits(1);
    plugin.expect("created");
    assert_eq!(plugin.stop(), Vec::<String>::new());
}

#[test]
fn a_failed_mount_is_not_taken_back_when_the_client_hangs_up() {
    let plugin = Plugin::start();
    let mut client = plugin.client();
    client.send_call("/VolumeDriver.Mount", r#"{"Name":"fail","ID":"i"}"#);
    plugin.expect(r#"mount "fail" "i""#);
    drop(client);
    assert_eq!(plugin.stop(), Vec::<String>::new());
}

#[test]
fn a_mount_whose_answer_was_read_stays() {
    let plugin = Plugin::start();
    for _ in 0..20 {
        let mut client = plugin.client();
        let answer = client.call("/VolumeDriver.Mount", r#"{"Name":"v","ID":"i"}"#);
        assert_eq!(answer.status, 200);
    }
    let mut kept_open = plugin.client();
    assert_eq!(kept_open.call("/VolumeDriver.Mount", r#"{"Name":"v","ID":"i"}"#).status, 200);
    assert_eq!(kept_open.call("/VolumeDriver.Get", r#"{"Name":"v"}"#).status, 200);
    let events = plugin.stop();
    assert_eq!(events.iter().filter(|event| *event == "mounted").count(), 21);
    assert!(!events.iter().any(|event| event.starts_with("uncollected")), "{events:?}");
}

#[test]
fn a_mount_is_taken_back_exactly_when_its_answer_could_not_be_written() {
    const ROUNDS: usize = 300;
    let plugin = Plugin::start();
    let mut events = Vec::new();
    for round in 0..ROUNDS {
        let mut client = plugin.client();
        client.send_call("/VolumeDriver.Mount", format!(r#"{{"Name":"slow","ID":"{round}"}}"#));
        let begun = format!("mount \"slow\" \"{round}\"");
        while events.last() != Some(&begun) {
            events.push(plugin.events.recv_timeout(PATIENCE).unwrap());
        }
        match round % 3 {
            // Hangs up before there is an answer, if only just.
            0 => {
                drop(client);
                plugin.toy.gate.add_permits(1);
            }
            // Reads it and hangs up.
            1 => {
                plugin.toy.gate.add_permits(1);
                assert_eq!(client.answer().status, 200);
            }
            // Hangs up while it is made, written, or waiting to be read.
            _ => plugin.toy.gate.add_permits(1),
        }
    }
    events.extend(plugin.stop());
    assert_eq!(events.iter().filter(|event| *event == "mounted").count(), ROUNDS);
    for round in 0..ROUNDS {
        let event = format!("uncollected \"slow\" \"{round}\"");
        let times = events.iter().filter(|seen| **seen == event).count();
        match round % 3 {
            0 => assert_eq!(times, 1, "{round}"),
            1 => assert_eq!(times, 0, "{round}"),
            _ => assert!(times <= 1, "{round}"),
        }
    }
}

#[test]
fn a_call_past_its_deadline_is_told_to_try_again_and_goes_on() {
    let plugin = Plugin::with_limit(Duration::from_millis(50));
    let mut client = plugin.client();
    for (call, begun) in [
        ("Create", r#"create "slow" {}"#),
        ("Mount", r#"mount "slow" "i""#),
        ("Unmount", r#"unmount "slow" "i""#),
        ("Remove", r#"remove "slow""#),
    ] {
        let answer = client.call(&volume_call(call), r#"{"Name":"slow","ID":"i"}"#);
        assert_eq!(answer.status, 500);
        let error = answer.error();
        assert!(error.contains("goes on") && error.contains("try again"), "{error}");
        plugin.expect(begun);
    }
    plugin.toy.gate.add_permits(4);
    let mut ends: Vec<String> =
        (0..3).map(|_| plugin.events.recv_timeout(PATIENCE).unwrap()).collect();
    ends.sort();
    assert_eq!(ends, ["created", "mounted", r#"uncollected "slow" "i""#]);
}

#[test]
fn create_and_mount_have_their_own_deadline() {
    let limits =
        Limits { create_and_mount: PATIENCE, others: Duration::from_millis(50), drain: PATIENCE };
    let plugin = Plugin::start_with(limits, Vec::new());
    let mut mounting = plugin.client();
    mounting.send_call("/VolumeDriver.Mount", r#"{"Name":"slow","ID":"i"}"#);
    plugin.expect(r#"mount "slow" "i""#);
    let late = plugin.client().call("/VolumeDriver.Unmount", r#"{"Name":"slow","ID":"i"}"#);
    assert_eq!(late.status, 500);
    assert!(mounting.is_idle());
    plugin.toy.gate.add_permits(2);
    assert_eq!(mounting.answer().status, 200);
    assert_eq!(Limits::default().create_and_mount, Duration::from_secs(110));
    assert_eq!(Limits::default().others, Duration::from_secs(50));
}

// List.

#[test]
fn a_list_is_all_pages_or_an_error() {
    let plugin = Plugin::with_pages(&[
        Page::Volumes(&[]),
        Page::Volumes(&["a", "b"]),
        Page::Volumes(&[]),
        Page::Volumes(&["c\"\\"]),
    ]);
    let mut client = plugin.client();
    for body in ["", "{}\n"] {
        let answer = client.call("/VolumeDriver.List", body);
        assert!(answer.is_complete);
        let volume = |name| json!({ "Name": name, "Mountpoint": "" });
        let volumes = [volume("a"), volume("b"), volume("c\"\\")];
        assert_eq!(answer.json(), json!({ "Volumes": volumes, "Err": "" }));
    }

    let empty = Plugin::with_pages(&[]).client().call("/VolumeDriver.List", "");
    assert_eq!(empty.json(), json!({ "Volumes": [], "Err": "" }));

    let failed = Plugin::with_pages(&[Page::Fails]).client().call("/VolumeDriver.List", "");
    assert_eq!((failed.status, failed.error().as_str()), (500, "Cinder is down"));
}

#[test]
fn a_list_whose_later_page_fails_is_cut_off_without_its_end() {
    let plugin = Plugin::with_pages(&[Page::Volumes(&["a", "b"]), Page::Fails]);
    let mut client = plugin.client();
    let answer = client.call("/VolumeDriver.List", "{}");
    assert_eq!(answer.status, 200);
    assert!(!answer.is_complete, "{answer:?}");
    assert!(serde_json::from_str::<serde_json::Value>(&answer.body).is_err());
    assert!(client.is_closed_by_server());
    assert_eq!(plugin.client().call("/Plugin.Activate", "").status, 200);
}

#[test]
fn a_list_whose_later_page_is_late_is_cut_off_and_its_source_told() {
    let plugin = Plugin::with_limit(Duration::from_millis(50));
    let answer = plugin.client().call("/VolumeDriver.List", "{}");
    assert!(!answer.is_complete, "{answer:?}");
    plugin.expect("gone");
}

#[test]
fn the_source_of_a_list_is_told_when_its_reader_hangs_up() {
    let plugin = Plugin::with_pages(&[Page::Volumes(&["a"]), Page::Waits]);
    let mut client = plugin.client();
    client.send_call("/VolumeDriver.List", "{}");
    assert!(client.starts_to_answer());
    drop(client);
    plugin.expect("gone");
}

// The end.

#[test]
fn a_shutdown_lets_running_operations_be_answered_and_takes_no_new_ones() {
    let mut plugin = Plugin::start();
    let (mut mounting, mut idle) = (plugin.client(), plugin.client());
    assert_eq!(idle.call("/Plugin.Activate", "").status, 200);
    mounting.send_call("/VolumeDriver.Mount", r#"{"Name":"slow","ID":"i"}"#);
    plugin.expect(r#"mount "slow" "i""#);
    plugin.stop.take().unwrap().send(()).unwrap();
    assert!(idle.is_closed_by_server());
    assert!(UnixStream::connect(&plugin.socket).is_err());
    plugin.toy.gate.add_permits(1);
    assert_eq!(mounting.answer().status, 200);
    plugin.thread.take().unwrap().join().unwrap();
    assert!(!plugin.socket.exists());
    plugin.expect("mounted");
    assert!(plugin.events.try_recv().is_err());
}

#[test]
fn a_shutdown_waits_for_an_operation_only_so_long() {
    let limits = Limits { drain: Duration::from_millis(50), ..Limits::default() };
    let plugin = Plugin::start_with(limits, Vec::new());
    let mut client = plugin.client();
    client.send_call("/VolumeDriver.Create", r#"{"Name":"slow"}"#);
    plugin.expect(r#"create "slow" {}"#);
    // Returns although the operation never ends.
    assert_eq!(plugin.stop(), Vec::<String>::new());
}
