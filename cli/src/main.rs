//! Entry point of `tidegate`: arguments in, text out, an exit status that scripts can rely on.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidegate_cli::args::{Arguments, Command};
use tidegate_cli::import::Imported;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        Command::Show(show) if show.watch_s.is_some() => {
            let mut out = io::stdout().lock();
            match tidegate_cli::show::watch(&arguments.socket(), show, arguments.json || show.json, &mut out) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => fail(&format!("writing the answer: {error}")),
            }
        }
        Command::Top(_) if arguments.json => {
            fail("--json is for `tidegate show`; `tidegate show workers --json` has counters")
        }
        Command::Top(top) => said(tidegate_cli::top::run(&arguments.socket(), top)),
        Command::Completion { .. } | Command::Man { .. } if arguments.json => fail("--json is for `tidegate show`"),
        Command::Completion { shell } => said(tidegate_cli::manual::completion(*shell)),
        Command::Man { directory } => said(tidegate_cli::manual::write(directory.as_deref())),
        Command::Show(show) => said(tidegate_cli::show::run(&arguments.socket(), show, arguments.json || show.json)),
        Command::Explain(explain) => {
            said(tidegate_cli::explain::run(&arguments.socket(), explain, arguments.json || explain.json))
        }
        Command::Capture(_) if arguments.json => fail("--json is for `tidegate show`; a capture is pcapng"),
        Command::Capture(capture) => match tidegate_cli::capture::run(&arguments.socket(), capture) {
            Ok(text) => {
                if !capture.quiet {
                    let _ = write!(io::stderr(), "{text}");
                }
                ExitCode::SUCCESS
            }
            Err(error) => fail(&format!("{error:#}")),
        },
        Command::Drain { .. } | Command::Undrain if arguments.json => fail("--json is for `tidegate show`"),
        Command::Drain { wait } => {
            said(tidegate_cli::drain::run(&arguments.socket(), Some(Duration::from_secs(*wait))))
        }
        Command::Undrain => said(tidegate_cli::drain::run(&arguments.socket(), None)),
        Command::Health(_) if arguments.json => fail("--json is for `tidegate show`; health is an exit status"),
        Command::Health(health) => {
            let timeout = Duration::from_secs(health.timeout_s);
            said(tidegate_cli::health::run(&arguments.socket(), health.ready, timeout))
        }
        Command::Doctor(doctor) => match tidegate_cli::doctor::run(doctor, arguments.json || doctor.json) {
            Ok((text, well)) => match print(&text) {
                ExitCode::SUCCESS if !well => ExitCode::FAILURE,
                printed => printed,
            },
            Err(error) => fail(&format!("{error:#}")),
        },
        Command::Bench(bench) => said(tidegate_cli::bench::run(bench, arguments.json || bench.json)),
        Command::Nat(nat) => said(tidegate_cli::nat::run(nat, arguments.json)),
        Command::Policy(_) if arguments.json => {
            fail("--json is for `tidegate show`; `tidegate policy eval` speaks JSON")
        }
        Command::Policy(policy) => {
            match tidegate_cli::policy::run(policy, &mut io::stdout().lock(), &mut io::stderr().lock()) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                // A reader that has gone (`| head`) is no error.
                Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
                Err(error) => fail(&format!("{error:#}")),
            }
        }
        Command::Import(_) if arguments.json => fail("--json is for `tidegate show`; manifests are YAML"),
        Command::Import(from) => match tidegate_cli::import::run(from) {
            Ok(imported) => tell(&imported),
            Err(error) => fail(&format!("{error:#}")),
        },
    }
}

/// A text to standard output, or why there is none to standard error.
fn said(text: anyhow::Result<String>) -> ExitCode {
    match text {
        Ok(text) => print(&text),
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// Manifests to standard output, what they lack to standard error; failure if a rule was left out.
fn tell(imported: &Imported) -> ExitCode {
    for complaint in &imported.complaints {
        let _ = writeln!(io::stderr(), "tidegate: {complaint}");
    }
    match (print(&imported.text), imported.is_partial()) {
        (ExitCode::SUCCESS, true) => ExitCode::FAILURE,
        (printed, _) => printed,
    }
}

/// Writes `text` to standard output. A reader that has gone (`| head`) is no error and leaves no message.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => fail(&format!("writing the answer: {error}")),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

fn fail(message: &str) -> ExitCode {
    // Nothing can be done about a closed standard error; the exit status still tells.
    let _ = writeln!(io::stderr(), "tidegate: {message}");
    ExitCode::FAILURE
}
