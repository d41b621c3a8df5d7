//! Who is at the other end of a connection.

use tokio::net::UnixStream;

use super::Engine;

/// The process that opened the connection, if the kernel says and it still lives.
///
/// `/proc` is our own here, whatever roots the host's side was given: SO_PEERCRED counts in our own
/// pid namespace. A peer outside of it has pid 0.
pub(super) fn engine(stream: &UnixStream) -> Option<Engine> {
    let pid = stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(Engine { pid, start_time: start_time(&stat)? })
}

/// Field 22 of `/proc/PID/stat`. Field 2, the command, may hold blanks and parentheses.
fn start_time(stat: &str) -> Option<u64> {
    let (_, after_command) = stat.rsplit_once(')')?;
    after_command.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_a_command_full_of_parentheses() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 100\n";
        assert_eq!(start_time(stat), Some(98765));
        assert_eq!(start_time("7 (a"), None);
    }

    #[tokio::test]
    async fn the_engine_of_a_socket_pair_is_this_process() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let engine = engine(&ours).unwrap();
        assert_eq!(engine.pid, i32::try_from(std::process::id()).unwrap());
        assert!(engine.start_time > 0);
    }
}
