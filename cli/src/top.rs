//! `tidegate top`: what the dataplane does right now, on a terminal.
//!
//! Owns the terminal (and gives it back however this ends), the keys, and asking once an interval. What is shown is a pure
//! function of what was heard ([`view`]); with `--once` it goes to standard output as it is. A dataplane that does not
//! answer, or has started anew, is something to show, not an error.

use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::{Attribute, Print, SetAttribute};
use crossterm::{cursor, execute, queue, terminal};
use tidegate_api::client::Client;
use tidegate_api::show::{FlowFilter, Show, Shown};

use crate::args::TopArguments;
use crate::trouble;

/// What is shown: rates, sorting, the lines of one frame.
pub mod view;

use view::{Sample, State, Subject};

/// Longest wait for one answer: who watches wants to see that it hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Flows that are asked for.
const FLOWS_MAX: u32 = 2000;
/// Columns and lines of a frame that goes to no terminal; lines are as many as there are rows.
const PLAIN: (usize, usize) = (140, usize::MAX);

/// Shows until asked to end; with `--once` returns one frame.
///
/// # Errors
/// When the terminal cannot be used; with `--once` also when no answer comes.
pub fn run(socket: &Path, arguments: &TopArguments) -> anyhow::Result<String> {
    let mut state = State::new(arguments.subject, arguments.service.clone());
    let interval = Duration::from_secs(arguments.interval_s);
    let mut asker = Asker { socket, client: None, began: Instant::now() };
    if arguments.once {
        for wait in [Duration::ZERO, interval] {
            std::thread::sleep(wait);
            state.hear(Ok(asker.ask(&state).map_err(|error| anyhow!(error))?));
            if let Some(name) = state.unknown_service() {
                bail!("no Service {name} is served here; `tidegate show services` lists those that are");
            }
        }
        return Ok(state.frame(PLAIN.0, PLAIN.1).iter().map(|line| line.trim_end().to_owned() + "\n").collect());
    }
    let screen = Screen::take().context("`tidegate top` needs a terminal; --once prints one frame without")?;
    let shown = watch(&mut state, &mut asker, interval);
    drop(screen);
    shown.map(|()| String::new())
}

fn watch(state: &mut State, asker: &mut Asker<'_>, interval: Duration) -> anyhow::Result<()> {
    let mut next = Instant::now();
    loop {
        if Instant::now() >= next {
            if !state.is_paused {
                let heard = asker.ask(state);
                state.hear(heard);
            }
            next = Instant::now() + interval;
        }
        draw(state).context("drawing")?;
        let wait = next.saturating_duration_since(Instant::now());
        if event::poll(wait).context("waiting for a key")?
            && let Event::Key(key) = event::read().context("reading a key")?
            && key.kind != KeyEventKind::Release
        {
            match act(state, &key) {
                Act::End => return Ok(()),
                // Other questions have other answers.
                Act::Ask => next = Instant::now(),
                Act::Draw => {}
            }
        }
    }
}

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    End,
    Ask,
    Draw,
}

fn act(state: &mut State, key: &KeyEvent) -> Act {
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Act::End,
        KeyCode::Char('q') => Act::End,
        KeyCode::Char(digit @ '1'..='9') => match Subject::ALL.get(digit as usize - '1' as usize) {
            Some(subject) => {
                state.turn_to(*subject);
                Act::Ask
            }
            None => Act::Draw,
        },
        KeyCode::Tab => {
            state.turn_to(state.subject.next());
            Act::Ask
        }
        KeyCode::Enter if state.enter() => Act::Ask,
        KeyCode::Esc | KeyCode::Backspace if state.leave() => Act::Ask,
        KeyCode::Char('s') | KeyCode::Right => state.sort_by(1),
        KeyCode::Left => state.sort_by(-1),
        KeyCode::Char('r') => state.reverse(),
        KeyCode::Char('p') | KeyCode::Char(' ') => state.pause(),
        KeyCode::Up | KeyCode::Char('k') => state.select(-1),
        KeyCode::Down | KeyCode::Char('j') => state.select(1),
        KeyCode::PageUp => state.select(-20),
        KeyCode::PageDown => state.select(20),
        _ => Act::Draw,
    }
}

/// Changes of the view that need no new answer.
trait Redrawn {
    fn sort_by(&mut self, columns: isize) -> Act;
    fn reverse(&mut self) -> Act;
    fn pause(&mut self) -> Act;
    fn select(&mut self, rows: isize) -> Act;
}

impl Redrawn for State {
    fn sort_by(&mut self, columns: isize) -> Act {
        self.turn_sorting(columns);
        Act::Draw
    }

    fn reverse(&mut self) -> Act {
        self.is_reversed = !self.is_reversed;
        Act::Draw
    }

    fn pause(&mut self) -> Act {
        self.is_paused = !self.is_paused;
        Act::Draw
    }

    fn select(&mut self, rows: isize) -> Act {
        self.selected = self.selected.saturating_add_signed(rows);
        Act::Draw
    }
}

fn draw(state: &mut State) -> io::Result<()> {
    let (width, height) = terminal::size()?;
    let lines = state.frame(width.into(), height.into());
    let marked = state.marked_line();
    let mut out = io::stdout().lock();
    for (number, line) in (0..height).zip(lines.iter().map(String::as_str).chain(std::iter::repeat(""))) {
        let attribute = match usize::from(number) {
            0 => Attribute::Bold,
            number if Some(number) == marked => Attribute::Reverse,
            _ => Attribute::Reset,
        };
        queue!(
            out,
            cursor::MoveTo(0, number),
            SetAttribute(Attribute::Reset),
            SetAttribute(attribute),
            Print(line),
            SetAttribute(Attribute::Reset),
            terminal::Clear(terminal::ClearType::UntilNewLine)
        )?;
    }
    out.flush()
}

/// The terminal while it is ours.
struct Screen;

impl Screen {
    fn take() -> io::Result<Screen> {
        terminal::enable_raw_mode()?;
        let screen = Screen;
        // A panic tells its story on a terminal that can show it.
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            told(panic);
        }));
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // Nobody is left to tell.
    let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
    let _ = terminal::disable_raw_mode();
}

/// Asks, over one conversation as long as it holds.
struct Asker<'a> {
    socket: &'a Path,
    client: Option<Client>,
    began: Instant,
}

impl Asker<'_> {
    fn ask(&mut self, state: &State) -> Result<Sample, String> {
        let asked = self.ask_all(state);
        if asked.is_err() {
            self.client = None;
        }
        asked.map_err(|error| trouble::explain(&error, self.socket))
    }

    fn ask_all(&mut self, state: &State) -> Result<Sample, tidegate_api::client::ClientError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => {
                let mut client = Client::connect(self.socket, concat!("tidegate ", env!("CARGO_PKG_VERSION")))?;
                client.set_timeout(Some(ANSWER_TIMEOUT))?;
                client
            }
        };
        let mut sample = Sample { server: client.server.clone(), ..Sample::default() };
        for question in questions(state) {
            sample.take(client.show(question)?);
        }
        sample.at_s = self.began.elapsed().as_secs_f64();
        self.client = Some(client);
        Ok(sample)
    }
}

/// What has to be asked for what is shown: the head needs the first three.
fn questions(state: &State) -> Vec<Show> {
    let mut asked = vec![Show::Workers, Show::Counters, Show::Ports];
    match state.subject {
        Subject::Workers => {}
        Subject::Drops => asked.push(Show::Drops),
        Subject::Services => asked.push(Show::Services),
        Subject::Backends => {
            asked.push(Show::Backends { service: state.service.clone() });
            // Whether there is one of that name.
            asked.extend(state.service.is_some().then_some(Show::Services));
        }
        Subject::Flows => asked.push(Show::Flows { limit: FLOWS_MAX, filter: FlowFilter::default() }),
        Subject::Nat => asked.push(Show::Egress),
    }
    asked
}

impl Sample {
    fn take(&mut self, shown: Shown) {
        match shown {
            Shown::Workers(rows) => self.workers = rows,
            Shown::Counters(counters) => self.counters = counters,
            Shown::Ports(rows) => self.ports = rows,
            Shown::Drops(rows) => self.drops = rows,
            Shown::Services(rows) => self.services = rows,
            Shown::Backends(rows) => self.backends = rows,
            Shown::Flows(rows) => self.flows = rows,
            Shown::Egress(shown) => self.egress = shown,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(state: &mut State, code: KeyCode) -> Act {
        act(state, &KeyEvent::new(code, KeyModifiers::NONE))
    }

    #[test]
    fn keys_turn_sort_select_and_end() {
        let mut state = State::new(Subject::Workers, None);
        assert_eq!(press(&mut state, KeyCode::Char('3')), Act::Ask);
        assert_eq!(state.subject, Subject::Services);
        assert_eq!(press(&mut state, KeyCode::Tab), Act::Ask);
        assert_eq!(state.subject, Subject::Backends);
        for key in ['9', 's', 'r', 'p', 'j', 'k', 'x'] {
            assert_eq!(press(&mut state, KeyCode::Char(key)), Act::Draw, "{key}");
        }
        assert!(state.is_paused && state.is_reversed);
        assert_eq!(press(&mut state, KeyCode::Esc), Act::Draw, "there is nothing to leave");
        assert_eq!(press(&mut state, KeyCode::Char('q')), Act::End);
        assert_eq!(act(&mut state, &KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Act::End);
    }

    #[test]
    fn only_what_is_shown_is_asked_for() {
        for subject in Subject::ALL {
            let asked = questions(&State::new(subject, None));
            assert_eq!(asked.len(), if subject == Subject::Workers { 3 } else { 4 }, "{subject:?}");
        }
        let asked = questions(&State::new(Subject::Workers, Some("shop/web".into())));
        assert!(matches!(asked.as_slice(), [.., Show::Backends { service: Some(_) }, Show::Services]), "{asked:?}");
    }
}
