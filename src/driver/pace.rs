//! How often to look at something that Cinder does in its own time.

use std::time::Duration;

use tokio::time::sleep;

/// First wait between two looks; …
const FIRST: Duration = Duration::from_millis(10);
/// … the first where a look may be a reserve, and many hosts may wait for one volume; …
const CALM_FIRST: Duration = Duration::from_millis(25);
/// … and the longest.
const LONGEST: Duration = Duration::from_millis(500);

/// Waits that grow with the time that it has taken: late by half of it at most, and by half a second.
#[derive(Debug)]
pub(super) struct Pace {
    pause: Duration,
}

impl Pace {
    pub fn new() -> Self {
        Self { pause: FIRST }
    }

    /// Of a Mount.
    pub fn calm() -> Self {
        Self { pause: CALM_FIRST }
    }

    /// The wait before the next look.
    pub async fn next(&mut self) {
        sleep(self.step()).await;
    }

    fn step(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 3 / 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cinder_has_done_is_noticed_soon_with_few_looks() {
        let of_look = [(10, 10, 1), (500, 250, 9), (3000, 500, 15), (8000, 500, 25)];
        let of_mount = [(10, 25, 1), (500, 200, 7), (3000, 500, 13), (8000, 500, 23)];
        for (begin, limits) in [(Pace::new as fn() -> Pace, of_look), (Pace::calm, of_mount)] {
            for (takes, late, most) in limits {
                let (mut pace, mut passed, mut looks) = (begin(), Duration::ZERO, 0);
                while passed < Duration::from_millis(takes) {
                    passed += pace.step();
                    looks += 1;
                }
                let found = passed - Duration::from_millis(takes);
                assert!(found <= Duration::from_millis(late), "{takes}: {found:?} late");
                assert!(looks <= most, "{takes}: {looks} looks");
            }
        }
    }
}
