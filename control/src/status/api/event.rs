//! Events about Services and policies (`events.k8s.io/v1`), for people who ask `kubectl describe`.
//!
//! Owns how many there are: each object has a small purse of events that fills slowly, all together are sent at a
//! steady rate, and what does not fit is left out. Equal ones within some minutes become a series of one; one of another
//! text is another event. Events are a courtesy: one that cannot be sent is forgotten and holds up nothing.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use super::Denied;
use crate::lease::Tenure;
use crate::source::ObjectKey;
use crate::source::kubernetes::words;
use crate::source::record::FIELD_MANAGER;

/// Events of one Service that may follow each other at once.
const PURSE: f64 = 20.0;
/// One more may be sent after so many seconds.
const PURSE_FILLS_S: f64 = 15.0;
/// Purses kept; when there are more, those that are full again are forgotten.
const PURSES_MAX: usize = 4096;
/// Between two events of all Services together.
const APART: Duration = Duration::from_millis(20);
/// A server that does not answer about an event is not waited for.
const WITHIN: Duration = Duration::from_secs(4);
/// Events that wait to be sent; more are left out.
pub(super) const WAITING_MAX: usize = 2000;

/// Texts whose events may still become series.
const SERIES_MAX: usize = 1024;
/// An event that has not come again for so long begins anew; kube forgets it as well.
const SERIES_END: Duration = Duration::from_secs(360);

/// How bad the news is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Normal,
    /// Something asked for is not done.
    Warning,
}

/// Something that happened to a Service, or is wrong with a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Which object.
    pub about: ObjectKey,
    /// Object identity.
    pub uid: String,
    /// How bad it is.
    pub tone: Tone,
    /// Reason in CamelCase, as Kubernetes' own service controller has them (C-001 … C-004).
    pub reason: &'static str,
    /// For people.
    pub note: String,
}

/// What each Service has left to spend.
#[derive(Debug, Default)]
struct Purses(HashMap<String, (f64, Instant)>);

impl Purses {
    fn pay(&mut self, uid: &str, now: Instant) -> bool {
        if self.0.len() >= PURSES_MAX {
            self.0.retain(|_, (left, at)| *left + seconds(*at, now) / PURSE_FILLS_S < PURSE);
        }
        let (left, at) = self.0.entry(uid.into()).or_insert((PURSE, now));
        *left = (*left + seconds(*at, now) / PURSE_FILLS_S).min(PURSE);
        *at = now;
        let pays = *left >= 1.0;
        if pays {
            *left -= 1.0;
        }
        pays
    }
}

fn seconds(since: Instant, now: Instant) -> f64 {
    now.saturating_duration_since(since).as_secs_f64()
}

/// Sends what comes until nobody sends more. Each event carries the term in which it happened.
pub(super) async fn send(
    client: Client,
    instance: String,
    tenure: Arc<Tenure>,
    mut happened: mpsc::Receiver<(u64, Happening)>,
    denied: &RefCell<Denied<'_>>,
) {
    let reporter = Reporter { controller: FIELD_MANAGER.into(), instance: Some(instance) };
    let mut series = Series::new(|| Recorder::new(client.clone(), reporter.clone()));
    let mut purses = Purses::default();
    while let Some((term, happening)) = happened.recv().await {
        if !purses.pay(&happening.uid, Instant::now()) {
            continue;
        }
        let Some(_leave) = tenure.write(term) else { continue };
        let recorder = series.of(&happening, Instant::now());
        let (event, about) = form(happening);
        match tokio::time::timeout(WITHIN, recorder.publish(&event, &about)).await {
            Ok(result) => {
                denied.borrow_mut().note("create and patch events in events.k8s.io", result.as_ref());
                if let Err(error) = result {
                    tracing::debug!(reason = event.reason, error = words(&error), "an event could not be sent");
                }
            }
            Err(_) => tracing::debug!(reason = event.reason, "an event was not answered"),
        }
        tokio::time::sleep(APART).await;
    }
}

/// A recorder for each text: kube's own tells events apart by what they are about and their reason alone, and a series
/// keeps the text that it began with.
struct Series<T, F: Fn() -> T> {
    make: F,
    by_text: HashMap<(String, &'static str, String), (T, Instant)>,
}

impl<T, F: Fn() -> T> Series<T, F> {
    fn new(make: F) -> Self {
        Series { make, by_text: HashMap::new() }
    }

    /// Who records `happening`.
    fn of(&mut self, happening: &Happening, now: Instant) -> &T {
        if self.by_text.len() >= SERIES_MAX {
            self.by_text.retain(|_, (_, used)| now.saturating_duration_since(*used) < SERIES_END);
            if self.by_text.len() >= SERIES_MAX {
                self.by_text.clear(); // each begins a series of its own once more
            }
        }
        let text = (happening.uid.clone(), happening.reason, happening.note.clone());
        let (recorder, used) = self.by_text.entry(text).or_insert_with(|| ((self.make)(), now));
        *used = now;
        recorder
    }
}

fn form(happening: Happening) -> (Event, ObjectReference) {
    let Happening { about, uid, tone, reason, mut note } = happening;
    let mut end = note.len().min(1000); // events.k8s.io takes 1024 bytes
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    note.truncate(end);
    let event = Event {
        type_: match tone {
            Tone::Normal => EventType::Normal,
            Tone::Warning => EventType::Warning,
        },
        reason: reason.into(),
        note: Some(note),
        action: reason.into(),
        secondary: None,
    };
    let about = ObjectReference {
        api_version: Some(about.kind.api_version().into()),
        kind: Some(about.kind.to_string()),
        namespace: Some(about.namespace).filter(|namespace| !namespace.is_empty()),
        name: Some(about.name),
        uid: Some(uid),
        ..ObjectReference::default()
    };
    (event, about)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ObjectKind;

    fn web() -> ObjectKey {
        ObjectKey { kind: ObjectKind::Service, namespace: "shop".into(), name: "web".into() }
    }

    #[test]
    fn an_event_is_about_the_object_of_its_kind() {
        let about = ObjectKey { kind: ObjectKind::GatewayPolicy, namespace: String::new(), name: "office".into() };
        let (tone, note) = (Tone::Warning, "spec.order: 70000 is not from 0 to 65535".into());
        let (event, about) = form(Happening { about, uid: "u".into(), tone, reason: "Invalid", note });
        assert_eq!(about.api_version.as_deref(), Some("tidegate.io/v1alpha1"));
        assert_eq!((about.kind.as_deref(), about.namespace), (Some("GatewayPolicy"), None));
        assert_eq!((event.reason.as_str(), event.type_), ("Invalid", EventType::Warning));
    }

    #[test]
    fn one_service_cannot_flood_and_does_not_silence_another() {
        let (mut purses, now) = (Purses::default(), Instant::now());
        let sent = (0..100).filter(|_| purses.pay("a", now)).count();
        assert_eq!(sent, 20);
        assert!(purses.pay("b", now));
        assert!(purses.pay("a", now + Duration::from_secs(16)));
        assert!(!purses.pay("a", now + Duration::from_secs(16)));
        for n in 0..3 * PURSES_MAX {
            purses.pay(&n.to_string(), now + Duration::from_secs(n as u64));
        }
        assert!(purses.0.len() <= PURSES_MAX, "memory of those long gone");
    }

    #[test]
    fn a_series_is_of_one_text() {
        let made = std::cell::Cell::new(0);
        let mut series = Series::new(|| made.replace(made.get() + 1));
        let now = Instant::now();
        let happening = |note: &str| Happening {
            about: web(),
            uid: "u".into(),
            tone: Tone::Warning,
            reason: "AllocationFailed",
            note: note.into(),
        };
        let first = *series.of(&happening("pool a is used up"), now);
        assert_ne!(*series.of(&happening("10.0.0.1 is in no pool"), now), first);
        assert_eq!(*series.of(&happening("pool a is used up"), now), first);
        for n in 0..3 * SERIES_MAX {
            series.of(&happening(&n.to_string()), now);
        }
        assert!(series.by_text.len() <= SERIES_MAX);
    }

    #[test]
    fn a_long_note_is_cut_between_letters() {
        let happening =
            Happening { about: web(), uid: "u".into(), tone: Tone::Warning, reason: "R", note: "ä".repeat(1000) };
        let (event, _) = form(happening);
        assert_eq!(event.note.unwrap().len(), 1000);
    }
}
