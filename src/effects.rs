//! The gate that every effect on the world outside passes: cloud calls, journal writes, processes,
//! sysfs, directories.
//!
//! In a release build there is nothing here. A debug build whose environment names a directory in
//! [`FAULTS_VARIABLE`] numbers its effects and does what the file `plan` in there says, so that a
//! test can kill the daemon at each of them, make each of them fail, or lose its answer:
//!
//! ```text
//! plan:   FAULT N ID [KIND]   N = 1, 2, 3 … (of that kind) since the plan is there; a new ID
//!                             begins anew
//! log:    N KIND WHAT         appended before each effect, and "N end" after it
//! paused: (empty)             with the fault `pause`: the effect waits while this file is there
//! ```

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Names the directory of `plan` and `log`; only debug builds look.
pub const FAULTS_VARIABLE: &str = "CINDER_DRIVER_FAULTS";

/// Where a test keeps tools to be used in place of the system's: `tools` in that directory.
pub fn tools() -> Option<PathBuf> {
    let directory = cfg!(debug_assertions).then(|| std::env::var_os(FAULTS_VARIABLE)).flatten()?;
    Some(PathBuf::from(directory).join("tools"))
}

/// What sort of effect it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request to Keystone or Cinder.
    Cloud,
    /// A file of the journal.
    Journal,
    /// A process.
    Process,
    /// A file of sysfs whose write does work in the kernel; a flush.
    Kernel,
    /// A file or directory on this host or on the volume.
    File,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cloud => "cloud",
            Self::Journal => "journal",
            Self::Process => "process",
            Self::Kernel => "kernel",
            Self::File => "file",
        })
    }
}

/// An effect that a test made fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injected {
    /// The effect.
    pub what: String,
    /// It happened all the same; only its answer was lost.
    pub lost: bool,
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: made to fail by a test", self.what)
    }
}

impl std::error::Error for Injected {}

impl From<Injected> for io::Error {
    fn from(injected: Injected) -> Self {
        Self::other(injected)
    }
}

/// An effect under way.
#[derive(Debug)]
#[must_use]
pub struct Passage {
    #[cfg(debug_assertions)]
    inner: armed::Passage,
}

/// Before an effect. An error means that it must not be done.
#[cfg_attr(not(debug_assertions), inline)]
pub fn enter(kind: Kind, what: impl FnOnce() -> String) -> Result<Passage, Injected> {
    #[cfg(debug_assertions)]
    return armed::enter(kind, what).map(|inner| Passage { inner });
    #[cfg(not(debug_assertions))]
    {
        let _ = (kind, what);
        Ok(Passage {})
    }
}

impl Passage {
    /// In the middle of an effect that takes its time: a process runs.
    #[cfg_attr(not(debug_assertions), inline)]
    pub fn midway(&self) {
        #[cfg(debug_assertions)]
        self.inner.midway();
    }

    /// After the effect. An error means that its answer is lost.
    #[cfg_attr(not(debug_assertions), inline)]
    pub fn leave(self) -> Result<(), Injected> {
        #[cfg(debug_assertions)]
        return self.inner.leave();
        #[cfg(not(debug_assertions))]
        Ok(())
    }
}

/// An effect that is awaited.
pub async fn run<T, E: From<Injected>>(
    kind: Kind,
    what: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let passage = enter(kind, what)?;
    let result = work.await;
    passage.leave()?;
    result
}

/// An effect on the thread that asks.
pub fn run_blocking<T, E: From<Injected>>(
    kind: Kind,
    what: impl FnOnce() -> String,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let passage = enter(kind, what)?;
    let result = work();
    passage.leave()?;
    result
}

#[cfg(debug_assertions)]
mod armed {
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::{LazyLock, Mutex, PoisonError};

    use super::{FAULTS_VARIABLE, Injected, Kind};

    static GATE: LazyLock<Option<Gate>> = LazyLock::new(|| {
        let directory = PathBuf::from(std::env::var_os(FAULTS_VARIABLE)?);
        Some(Gate { directory, counted: Mutex::default() })
    });

    struct Gate {
        directory: PathBuf,
        counted: Mutex<Counted>,
    }

    #[derive(Default)]
    struct Counted {
        plan: String,
        effects: u64,
        of_kind: u64,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        KillBefore,
        KillMidway,
        KillAfter,
        Fail,
        Lose,
        Pause,
    }

    impl Fault {
        fn parse(word: &str) -> Option<Self> {
            Some(match word {
                "kill-before" => Self::KillBefore,
                "kill-midway" => Self::KillMidway,
                "kill-after" => Self::KillAfter,
                "fail" => Self::Fail,
                "lose" => Self::Lose,
                "pause" => Self::Pause,
                _ => return None,
            })
        }
    }

    #[derive(Debug)]
    pub struct Passage {
        number: Option<u64>,
        what: String,
        fault: Option<Fault>,
    }

    pub fn enter(kind: Kind, what: impl FnOnce() -> String) -> Result<Passage, Injected> {
        let Some(gate) = &*GATE else {
            return Ok(Passage { number: None, what: String::new(), fault: None });
        };
        let what = what();
        let Some((number, fault)) = gate.count(kind) else {
            return Ok(Passage { number: None, what, fault: None });
        };
        gate.log(&format!("{number} {kind} {}", what.replace('\n', " ")));
        match fault {
            Some(Fault::KillBefore) => die(),
            Some(Fault::Fail) => Err(Injected { what, lost: false }),
            Some(Fault::Pause) => {
                gate.wait();
                Ok(Passage { number: Some(number), what, fault: None })
            }
            fault => Ok(Passage { number: Some(number), what, fault }),
        }
    }

    impl Passage {
        pub fn midway(&self) {
            if self.fault == Some(Fault::KillMidway) {
                die();
            }
        }

        pub fn leave(self) -> Result<(), Injected> {
            if let (Some(gate), Some(number)) = (&*GATE, self.number) {
                gate.log(&format!("{number} end"));
            }
            match self.fault {
                Some(Fault::KillAfter) => die(),
                Some(Fault::Lose) => Err(Injected { what: self.what, lost: true }),
                _ => Ok(()),
            }
        }
    }

    impl Gate {
        /// The effect's number and what happens to it; nothing without a plan.
        fn count(&self, kind: Kind) -> Option<(u64, Option<Fault>)> {
            let plan = fs::read_to_string(self.directory.join("plan")).ok()?;
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            if counted.plan != plan {
                *counted = Counted { plan, ..Counted::default() };
            }
            counted.effects += 1;
            let plan = counted.plan.clone();
            let mut words = plan.split_whitespace();
            let fault = words.next().and_then(Fault::parse);
            let planned: Option<u64> = words.next().and_then(|word| word.parse().ok());
            if words.nth(1).is_some_and(|wanted| wanted != kind.to_string()) {
                return Some((counted.effects, None));
            }
            counted.of_kind += 1;
            Some((counted.effects, fault.filter(|_| planned == Some(counted.of_kind))))
        }

        /// A test does something to this host, and then takes the file away.
        #[expect(clippy::disallowed_methods, reason = "all that is under way has to stop")]
        fn wait(&self) {
            let paused = self.directory.join("paused");
            let _ = fs::write(&paused, "");
            while paused.exists() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }

        fn log(&self, line: &str) {
            let open =
                OpenOptions::new().create(true).append(true).open(self.directory.join("log"));
            // A test that finds no line fails.
            let _ = open.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        }
    }

    /// As `kill -9`: no destructor, no signal handler.
    fn die() -> ! {
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        std::process::abort()
    }
}
