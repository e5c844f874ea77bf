//! Whether the dataplane that runs here hears its control.
//!
//! Asks the dataplane at its socket, which answers this without its workers. Where none runs there is nothing to hear.

use std::io::ErrorKind;

use tidegate_api::client::ClientError;
use tidegate_api::frame::ReadError;
use tidegate_api::show::{Show, Shown};
use tidegate_dataplane::config::NodeFile;

use super::running::Heard;
use super::{fine, running};
use crate::{Finding, Machine, Verdict};

/// Where to look, and what usually helps.
const FIX: &str = "systemctl status tidegate-control, and systemctl restart tidegate-control if it hangs; in a cluster \
                   kubectl logs -n tidegate POD -c control";

/// The same of a dataplane that takes connections and says nothing.
const FIX_SILENT: &str = "ps -eo pid,stat,wchan,args | grep tidegate-dataplane shows what it does: of state T it was stopped, \
                          and kill -CONT PID lets it go on; else systemctl restart tidegate-dataplane, or in a cluster \
                          kubectl delete pod -n tidegate POD";

/// The same of a dataplane that died.
const FIX_DEAD: &str = "systemctl start tidegate-dataplane; why it ended: journalctl -u tidegate-dataplane -n 50, and \
                        dmesg | grep -i oom; in a cluster kubectl logs -n tidegate POD -c dataplane --previous";

pub fn look(machine: &Machine, file: &NodeFile) -> Finding {
    let socket = file.socket.display().to_string();
    let untold = |error: String| {
        let found = format!("the dataplane does not tell whether it hears control: {error}");
        Finding::new("control", &socket, Verdict::Note, found)
    };
    let told = match running::ask(machine, file, Show::Control) {
        Ok(Heard::Told(Shown::Control(told))) => told,
        Ok(Heard::Nobody) => return fine("control", socket, "no dataplane runs here that could tell"),
        Ok(Heard::Leftover) => {
            let found = "no dataplane runs: the socket is left of one that was killed or crashed";
            return Finding::new("dataplane", socket, Verdict::Fail, found).mended_by(FIX_DEAD);
        }
        Ok(Heard::Told(other)) => return untold(format!("{other:?}")),
        Err(error) if is_silence(&error) => {
            let found = format!("the dataplane does not answer within {} s", running::PATIENCE.as_secs());
            return Finding::new("dataplane", socket, Verdict::Fail, found).mended_by(FIX_SILENT);
        }
        Err(error) => return untold(error.to_string()),
    };
    match told.is_well() {
        true => fine("control", socket, told.to_string()),
        false => Finding::new("control", socket, Verdict::Warn, told.to_string()).mended_by(FIX),
    }
}

/// Whether nobody has answered in time.
fn is_silence(error: &ClientError) -> bool {
    let source = match error {
        ClientError::Read(ReadError::Io(source)) | ClientError::Write(source) => source,
        _ => return false,
    };
    matches!(source.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tidegate_api::frame;
    use tidegate_api::listen::Listener;
    use tidegate_api::message::{CONTRACT_VERSION, Request, Response};
    use tidegate_api::resource::Versions;
    use tidegate_api::show::Control;

    use super::super::tests::{machine, told};
    use super::*;

    const SOCKET: &str = "run/tidegate.sock";

    /// What is found where a dataplane gives this answer; without one, where none runs.
    fn found(answer: Option<Response>) -> String {
        let text = format!("node: n\nsocket: /{SOCKET}\ndataplane: {{ interfaces: [{{ name: wan0 }}] }}");
        let file = NodeFile::parse(&text, Path::new("node.yaml")).unwrap();
        let (root, machine) = machine(&[("run/keep", "")]);
        let speaker = answer.map(|answer| {
            let listener = Listener::bind(&root.path().join(SOCKET), 0o600).unwrap();
            std::thread::spawn(move || {
                let mut stream = listener.accept().unwrap();
                let _hello: Request = frame::read(&mut stream).unwrap();
                let holds = Versions::new();
                let server = "t".into();
                let welcome =
                    Response::Welcome { contract: CONTRACT_VERSION, server, holds, reached: 1, prepares: true };
                frame::write(&mut stream, &welcome).unwrap();
                assert_eq!(frame::read::<Request>(&mut stream).unwrap(), Request::Show(Show::Control));
                frame::write(&mut stream, &answer).unwrap();
            })
        });
        let found = told(&[look(&machine, &file)], "control").remove(0);
        if let Some(speaker) = speaker {
            speaker.join().unwrap();
        }
        found
    }

    #[test]
    fn a_control_that_is_gone_or_hangs_is_named_with_the_command() {
        let client = || Some("tidegate-control 1".to_owned());
        let of = |client, has_spoken, silent_ms| {
            found(Some(Response::Shown(Shown::Control(Control { client, has_spoken, silent_ms }))))
        };
        let well = of(client(), true, 4_000);
        assert_eq!(well, "Ok /run/tidegate.sock | connected (tidegate-control 1), heard 4 s ago | -");
        for (told, expected) in [
            (of(client(), true, 90_000), "connected (tidegate-control 1), but silent for 90 s: it hangs"),
            (of(None, true, 90_000), "not connected, heard last 90 s ago"),
            (of(None, false, 5_000), "not connected, and not heard since the dataplane started 5 s ago"),
        ] {
            assert_eq!(told, format!("Warn /run/tidegate.sock | {expected} | {FIX}"));
        }
    }

    #[test]
    fn a_dataplane_that_says_nothing_or_has_died_has_failed() {
        let file = NodeFile::parse(
            &format!("node: n\nsocket: /{SOCKET}\ndataplane: {{ interfaces: [{{ name: wan0 }}] }}"),
            Path::new("node.yaml"),
        )
        .unwrap();
        let (root, machine) = machine(&[("run/keep", "")]);
        // Connections wait in the socket's queue, as those of a stopped process do.
        let listener = std::os::unix::net::UnixListener::bind(root.path().join(SOCKET)).unwrap();
        let found = told(&[look(&machine, &file)], "dataplane").remove(0);
        assert_eq!(found, format!("Fail /run/tidegate.sock | the dataplane does not answer within 5 s | {FIX_SILENT}"));

        // Killed, it leaves its socket behind.
        drop(listener);
        let found = told(&[look(&machine, &file)], "dataplane").remove(0);
        assert_eq!(
            found,
            format!(
                "Fail /run/tidegate.sock | no dataplane runs: the socket is left of one that was killed or crashed | \
                 {FIX_DEAD}"
            )
        );
    }

    #[test]
    fn where_no_dataplane_runs_there_is_nothing_to_hear_and_one_that_cannot_tell_is_noted() {
        assert_eq!(found(None), "Ok /run/tidegate.sock | no dataplane runs here that could tell | -");
        let older = found(Some(Response::Error { message: "unknown variant `control`".into() }));
        assert!(older.starts_with("Note ") && older.contains("unknown variant `control`"), "{older}");
    }
}
