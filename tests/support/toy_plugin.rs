//! A server over a real socket with a driver whose volumes behave as their name says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use cinder_docker_driver::docker::server::{Limits, serve};
use cinder_docker_driver::docker::{
    Arguments, Caller, Engine, Failure, Listed, Operation, VolumeDriver, VolumeInfo, socket,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::sync::{Barrier, Semaphore, mpsc, oneshot};

use crate::unix_http::{Client, PATIENCE};

/// Volumes whose name tells how they behave.
pub struct Toy {
    events: std_mpsc::Sender<String>,
    /// What a `slow` volume waits for.
    pub gate: Semaphore,
    /// All Gets of `together` must be there before one is answered.
    together: Barrier,
    /// Pages of List.
    pages: Vec<Page>,
    /// Gets answered.
    pub gets: AtomicUsize,
}

#[derive(Clone)]
pub enum Page {
    Volumes(&'static [&'static str]),
    Fails,
    Waits,
    Crashes,
}

/// How many Gets of `together` wait for each other.
pub const TOGETHER: usize = 64;

impl Toy {
    fn say(&self, event: impl Into<String>) {
        let _ = self.events.send(event.into());
    }

    async fn behave(&self, name: &str) -> Result<(), Failure> {
        match name {
            "slow" => self.gate.acquire().await.unwrap().forget(),
            "together" => {
                self.together.wait().await;
            }
            "crash" => panic!("a bug, as this test wants it"),
            "fail" => {
                return Err(Failure { bad_request: false, message: "quota exceeded".to_owned() });
            }
            "bad" => {
                return Err(Failure { bad_request: true, message: "no such option".to_owned() });
            }
            _ => {}
        }
        Ok(())
    }
}

#[async_trait]
impl VolumeDriver for Toy {
    async fn create(
        &self,
        _: &Caller,
        name: &str,
        options: &BTreeMap<String, String>,
    ) -> Result<(), Failure> {
        self.say(format!("create {name:?} {options:?}"));
        self.behave(name).await?;
        self.say("created");
        Ok(())
    }

    async fn remove(&self, _: &Caller, name: &str) -> Result<(), Failure> {
        self.say(format!("remove {name:?}"));
        self.behave(name).await
    }

    async fn mount(&self, caller: &Caller, name: &str, id: &str) -> Result<PathBuf, Failure> {
        self.say(format!("mount {name:?} {id:?}"));
        if name == "until-gone" {
            caller.gone.cancelled().await;
            self.say("gone");
        }
        self.behave(name).await?;
        self.say("mounted");
        Ok(match name {
            "nowhere" => PathBuf::new(),
            "relative" => PathBuf::from("mnt/relative"),
            _ => Path::new("/mnt").join(name),
        })
    }

    async fn mount_collected(&self, _: Option<Engine>, _: &str, _: &str) {}

    async fn mount_uncollected(&self, _: Option<Engine>, name: &str, id: &str) {
        self.say(format!("uncollected {name:?} {id:?}"));
    }

    async fn unmount(&self, _: &Caller, name: &str, id: &str) -> Result<(), Failure> {
        self.say(format!("unmount {name:?} {id:?}"));
        self.behave(name).await
    }

    async fn path(&self, name: &str) -> Result<Option<PathBuf>, Failure> {
        self.behave(name).await?;
        Ok((name == "mounted").then(|| "/mnt/mounted".into()))
    }

    async fn get(&self, caller: &Caller, name: &str) -> Result<VolumeInfo, Failure> {
        let Some(Engine { pid, start_time }) = caller.engine else { panic!("{caller:?}") };
        self.behave(name).await?;
        self.gets.fetch_add(1, Ordering::Relaxed);
        let status = json!({ "pid": pid, "start": start_time, "nested": { "a": [1, null] } });
        Ok(VolumeInfo {
            name: name.to_owned(),
            mountpoint: (name == "mounted").then(|| "/mnt/mounted".to_owned()),
            created_at: (name == "mounted").then(|| "2026-11-22T05:00:00Z".to_owned()),
            status: status.as_object().unwrap().clone(),
        })
    }

    async fn operate(
        &self,
        _: &Caller,
        operation: Operation,
        name: &str,
        arguments: &Arguments,
    ) -> Result<Map<String, Value>, Failure> {
        let confirmed = arguments.id.as_deref();
        self.say(format!("{operation:?} {name:?} {confirmed:?}"));
        self.behave(name).await?;
        Ok(Map::from_iter([("Done".to_owned(), json!(confirmed.is_some()))]))
    }

    async fn list(
        &self,
        caller: &Caller,
    ) -> Result<mpsc::Receiver<Result<Vec<Listed>, Failure>>, Failure> {
        let (sender, receiver) = mpsc::channel(1);
        let (pages, gone) = (self.pages.clone(), caller.gone.clone());
        if let [Page::Crashes] = pages.as_slice() {
            panic!("a bug, as this test wants it");
        }
        let events = self.events.clone();
        tokio::spawn(async move {
            for page in pages {
                let message = match page {
                    Page::Volumes(names) => Ok(names
                        .iter()
                        .map(|name| Listed { name: (*name).to_owned(), mountpoint: None })
                        .collect()),
                    Page::Fails => {
                        Err(Failure { bad_request: false, message: "Cinder is down".to_owned() })
                    }
                    Page::Waits => {
                        gone.cancelled().await;
                        let _ = events.send("gone".to_owned());
                        return;
                    }
                    Page::Crashes => return,
                };
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

/// A server with its toy in a thread of its own.
pub struct Plugin {
    pub socket: PathBuf,
    pub toy: Arc<Toy>,
    /// What the toy was asked and did, in order.
    pub events: std_mpsc::Receiver<String>,
    pub stop: Option<oneshot::Sender<()>>,
    pub thread: Option<JoinHandle<()>>,
    _directory: TempDir,
}

impl Plugin {
    pub fn start() -> Self {
        Self::start_with(Limits::default(), Vec::new())
    }

    pub fn with_pages(pages: &[Page]) -> Self {
        Self::start_with(Limits::default(), pages.to_vec())
    }

    pub fn with_limit(limit: Duration) -> Self {
        let limits = Limits { create_and_mount: limit, others: limit, drain: PATIENCE };
        Self::start_with(limits, vec![Page::Volumes(&["a"]), Page::Waits])
    }

    pub fn start_with(limits: Limits, pages: Vec<Page>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("plugins/cinder.sock");
        let (sender, events) = std_mpsc::channel();
        let toy = Arc::new(Toy {
            events: sender,
            gate: Semaphore::new(0),
            together: Barrier::new(TOGETHER),
            pages,
            gets: AtomicUsize::new(0),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std_mpsc::channel();
        let (path, driver) = (socket.clone(), toy.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let (listener, file) = socket::bind(&path, None).unwrap();
                ready.send(()).unwrap();
                serve(listener, driver, limits, async {
                    let _ = stopped.await;
                })
                .await;
                file.unlink();
            });
        });
        is_ready.recv_timeout(PATIENCE).unwrap();
        let (stop, thread) = (Some(stop), Some(thread));
        Self { socket, toy, events, stop, thread, _directory: directory }
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket)
    }

    #[track_caller]
    pub fn expect(&self, event: &str) {
        assert_eq!(self.events.recv_timeout(PATIENCE).as_deref(), Ok(event));
    }

    /// Stops the server, which waits for what runs, and tells all that happened since.
    pub fn stop(mut self) -> Vec<String> {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
        self.events.try_iter().collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.toy.gate.add_permits(1000);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
