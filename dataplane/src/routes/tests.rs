//! The keeper against the kernel itself, in a network namespace that vanishes with the test.

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::keeper::{Settings, serve};
use super::line::{Answer, Line, Order};
use super::program::Mark;
use crate::kernel::monitor::Monitor;
use crate::kernel::tests::{in_namespace, ip};
use crate::kernel::{Change, Layout};

const DEVICE: &str = "vips0";
const PROTOCOL: u8 = 116;
const LIMIT: Duration = Duration::from_secs(60);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// What `ip` prints, both families.
fn ip_says(arguments: &str) -> String {
    let of = |family: &str| {
        let output = Command::new("ip").arg(family).args(arguments.split_whitespace()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    of("-4") + &of("-6")
}

/// Prefixes of our routes in the kernel.
fn routes(table: u32) -> BTreeSet<IpNet> {
    let text = ip_says(&format!("route show table {table} proto {PROTOCOL}"));
    let prefix = |line: &str| {
        assert!(line.contains(&format!("dev {DEVICE}")), "{line}");
        let word = line.split_whitespace().next().unwrap();
        let whole = if word.contains(':') { 128 } else { 32 };
        word.parse().or_else(|_| IpNet::new(word.parse().unwrap(), whole)).unwrap()
    };
    text.lines().map(prefix).collect()
}

fn device_is_there() -> bool {
    std::fs::read_to_string("/proc/net/dev").unwrap().contains(DEVICE)
}

struct Kept {
    line: Line,
    thread: JoinHandle<std::io::Result<()>>,
    answers: Vec<Answer>,
}

impl Kept {
    fn start(table: u32) -> Kept {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mark = Mark { protocol: PROTOCOL, table, metric: 0 };
        let settings = Settings { device: DEVICE.into(), mark, patience_ns: 300_000_000 };
        let thread = std::thread::spawn(move || serve(settings, theirs));
        Kept { line: Line::new(ours).unwrap(), thread, answers: Vec::new() }
    }

    fn want(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        prefixes.into_iter().for_each(|prefix| self.line.say(&Order::Want(prefix)));
    }

    /// Beats until something holds.
    fn until(&mut self, what: &str, healthy: bool, mut holds: impl FnMut(&[Answer]) -> bool) {
        let began = Instant::now();
        loop {
            self.line.say(&Order::Beat { healthy });
            self.line.flush().unwrap();
            self.answers.extend(self.line.hear::<Answer>().unwrap());
            if holds(&self.answers) {
                return;
            }
            assert!(
                began.elapsed() < LIMIT,
                "never: {what}; the last answers: {:?}",
                self.answers.iter().rev().take(5)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn end(self) {
        drop(self.line);
        self.thread.join().unwrap().unwrap();
    }
}

#[test]
fn routes_come_go_and_are_put_back() {
    in_namespace("routes::tests::routes_come_go_and_are_put_back", || {
        ip("link set lo up");
        for table in [254, 70_000] {
            let mut kept = Kept::start(table); // M-030, M-033
            let first =
                BTreeSet::from(["203.0.113.10/32", "203.0.112.0/28", "2001:db8:f::10/128", "2001:db8:e::/64"].map(net));
            kept.want(first.iter().copied());
            kept.until("routes", true, |answers| {
                routes(table) == first && first.iter().all(|prefix| answers.contains(&Answer::There(*prefix)))
            });
            assert!(ip_says(&format!("addr show dev {DEVICE}")).lines().all(|line| !line.contains("inet")));
            for prefix in &first {
                ip(&format!("route del {prefix} table {table}"));
            }
            kept.until("all put back", true, |_| routes(table) == first);
            kept.line.say(&Order::Unwant(net("203.0.113.10/32")));
            kept.line.say(&Order::Unwant(net("2001:db8:e::/64")));
            let rest = BTreeSet::from(["203.0.112.0/28", "2001:db8:f::10/128"].map(net));
            kept.until("two less", true, |_| routes(table) == rest);
            ip(&format!("link set {DEVICE} down"));
            kept.until("a device that is up", true, |_| routes(table) == rest);
            ip(&format!("link del {DEVICE}"));
            kept.until("another device", true, |_| routes(table) == rest);
            kept.end();
            assert!(!device_is_there() && routes(table).is_empty(), "the connection ended");
        }
    });
}

#[test]
fn silence_and_ill_health_take_everything_away() {
    in_namespace("routes::tests::silence_and_ill_health_take_everything_away", || {
        let mut kept = Kept::start(254);
        let vips = BTreeSet::from(["203.0.113.10/32", "2001:db8:f::10/128"].map(net));
        kept.want(vips.iter().copied());
        kept.until("nothing yet", false, |answers| {
            answers.iter().any(|answer| matches!(answer, Answer::Alive { up: false, .. }))
        });
        assert!(!device_is_there(), "nobody has said that all is well");
        for _ in 0..3 {
            kept.until("routes", true, |_| routes(254) == vips);
            kept.until("none while ill", false, |_| !device_is_there());
            kept.until("routes", true, |_| routes(254) == vips);
            let began = Instant::now();
            while device_is_there() {
                assert!(began.elapsed() < LIMIT, "silence is not noticed");
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(routes(254).is_empty());
        }
        kept.end();
    });
}

#[test]
fn routes_of_others_are_left_alone() {
    in_namespace("routes::tests::routes_of_others_are_left_alone", || {
        ip("link set lo up");
        ip("link add far0 type veth peer name near0");
        ip("link set near0 up");
        ip("route add 203.0.113.10/32 dev near0");
        ip("-6 route add 2001:db8:f::10/128 dev near0 metric 1024");
        let mut kept = Kept::start(254);
        let vips = ["203.0.113.10/32", "2001:db8:f::10/128"].map(net);
        kept.want(vips);
        kept.until("refusals", true, |answers| {
            vips.iter()
                .all(|vip| answers.iter().any(|answer| matches!(answer, Answer::Refused(prefix, _) if prefix == vip)))
        });
        assert!(routes(254).is_empty());
        ip("route del 203.0.113.10/32 dev near0");
        ip("-6 route del 2001:db8:f::10/128 dev near0");
        kept.until("its turn", true, |_| routes(254) == BTreeSet::from(vips));
        kept.end();
    });
}

#[test]
fn thousands_of_routes_are_no_news_to_the_monitor() {
    in_namespace("routes::tests::thousands_of_routes_are_no_news_to_the_monitor", || {
        ip("link set lo up");
        let mut kept = Kept::start(254);
        kept.until("a device", true, |_| device_is_there());
        // The device itself is news, whose reading is to be over.
        std::thread::sleep(Duration::from_millis(500));
        let (tell, news) = mpsc::channel();
        let (facts, monitor) = Monitor::start(Some(PROTOCOL), move |change| tell.send(change).is_ok()).unwrap();
        let v4 = (0..2500u32).map(|n| IpNet::from(std::net::IpAddr::from((0xcb00_0000 + n).to_be_bytes())));
        let v6 = (0..2500u16).map(|n| IpNet::from(std::net::IpAddr::from([0x2001, 0xdb8, 0xf, 0, 0, 0, 0, n])));
        let vips: BTreeSet<IpNet> = v4.chain(v6).collect();
        kept.want(vips.iter().copied());
        let began = Instant::now();
        kept.until("all of them", true, |answers| {
            answers.iter().filter(|answer| matches!(answer, Answer::There(_))).count() == vips.len()
        });
        println!("{} routes after {} ms", vips.len(), began.elapsed().as_millis());
        assert_eq!(routes(254), vips);
        std::thread::sleep(Duration::from_millis(300));
        // The device may still be news (its carrier is noticed within a second), and so much at once may be more than the
        // socket holds, so that everything is read again: nothing of ours is in it, and it is not read for each route.
        let without_ours = |layout: &Layout| layout.routes.iter().all(|route| !vips.contains(&route.prefix));
        let told: Vec<Change> = news.try_iter().collect();
        assert!(told.len() <= 4, "{} pieces of news", told.len());
        assert!(without_ours(&facts.layout));
        assert!(told.iter().all(|change| match change {
            Change::All(facts) => without_ours(&facts.layout),
            Change::Layout(layout) => without_ours(layout),
            Change::Neighbours(_) => true,
        }));
        drop(monitor);
        let (with_ours, monitor) = Monitor::start(Some(PROTOCOL), |_| true).unwrap();
        assert!(without_ours(&with_ours.layout));
        drop(monitor);
        let began = Instant::now();
        kept.end();
        println!("gone after {} ms", began.elapsed().as_millis());
        assert!(routes(254).is_empty());
    });
}
