//! The image, built and started as the manifests say: four capabilities, a read-only root, no way to more privileges, and
//! a default seccomp profile of container engines. Needs root, buildah and crun.
//!
//! Everything happens in namespaces of its own, with a storage of its own, and ends with them. The programs lie beside
//! `tidegate-lab` when the workspace is built, or where `TIDEGATE_BIN_DIR` says.

#![cfg(feature = "kernel-tests")]
#![allow(clippy::unwrap_used, reason = "a test whose stage cannot be set has failed")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

/// Set inside the namespaces.
const INSIDE: &str = "TIDEGATE_IMAGE_TEST";
/// Everything is below this; a memory file system that only the inside sees.
const HOME: &str = "/run/image";
/// Where Debian keeps the profile that CRI-O and podman call the default. Docker's and containerd's is the same in what
/// matters here, but for `bpf`, which they allow to who has `CAP_BPF` (containerd/containerd#7301).
const SECCOMP: &str = "/usr/share/containers/seccomp.json";
/// Longest wait for a dataplane to be healthy.
const HEALTHY_WITHIN: Duration = Duration::from_secs(30);

fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn programs() -> PathBuf {
    std::env::var_os("TIDEGATE_BIN_DIR")
        .map_or_else(|| Path::new(env!("CARGO_BIN_EXE_tidegate-lab")).parent().unwrap().to_path_buf(), PathBuf::from)
}

/// The objects of the plain manifests.
fn manifests() -> Vec<Value> {
    let text = fs::read_to_string(repository().join("deploy/manifests/tidegate.yaml")).unwrap();
    serde_norway::Deserializer::from_str(&text).map(|document| Value::deserialize(document).unwrap()).collect()
}

fn of_kind<'a>(manifests: &'a [Value], kind: &str) -> &'a Value {
    manifests.iter().find(|object| object["kind"] == kind).unwrap()
}

/// What stands in for the volumes of the pod, by the volume's name.
fn volumes(manifests: &[Value]) -> Vec<(String, String)> {
    let files = format!("{HOME}/node-file");
    fs::create_dir_all(&files).unwrap();
    for (name, text) in of_kind(manifests, "ConfigMap")["data"].as_object().unwrap() {
        fs::write(format!("{files}/{name}"), text.as_str().unwrap()).unwrap();
    }
    let pod = &of_kind(manifests, "DaemonSet")["spec"]["template"]["spec"];
    let mut volumes = Vec::new();
    for volume in pod["volumes"].as_array().unwrap() {
        let name = volume["name"].as_str().unwrap();
        let place = format!("{HOME}/{name}");
        fs::create_dir_all(&place).unwrap();
        if name == "bpf" {
            run(&format!("mount -t bpf bpf {place}"));
        }
        // What kubelet makes for everybody is open to everybody; the node's own directories are root's.
        run(&format!("chmod {} {place}", if volume.get("emptyDir").is_some() { "777" } else { "755" }));
        volumes.push((name.to_owned(), place));
    }
    volumes
}

/// Whether a rule of the engines' profile is meant for a container with these capabilities on this kind of machine.
fn is_meant(rule: &Value, capabilities: &[String]) -> bool {
    let has = |list: &Value| {
        let all = list.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).any(|name| capabilities.iter().any(|own| own == name))
    };
    let for_us = |side: &str| {
        let arches = rule[side]["arches"].as_array();
        arches.is_none_or(|arches| arches.iter().any(|arch| arch == "amd64" || arch == "x86"))
    };
    let included = rule["includes"]["caps"].is_null() || has(&rule["includes"]["caps"]);
    let here = rule["includes"]["arches"].is_null() || for_us("includes");
    let excluded = !rule["excludes"]["caps"].is_null() && has(&rule["excludes"]["caps"]);
    let elsewhere = !rule["excludes"]["arches"].is_null() && for_us("excludes");
    included && here && !excluded && !elsewhere
}

/// The profile as a runtime takes it.
fn seccomp(capabilities: &[String]) -> Value {
    let profile: Value = serde_json::from_str(&fs::read_to_string(SECCOMP).unwrap()).unwrap();
    let rules = profile["syscalls"].as_array().unwrap().iter().filter(|rule| is_meant(rule, capabilities));
    let bpf = capabilities.iter().any(|name| name == "CAP_BPF");
    let mut rules: Vec<Value> = rules
        .map(|rule| {
            let names = rule["names"].as_array().unwrap().iter().filter(|name| !bpf || **name != "bpf");
            let mut kept = json!({ "names": names.collect::<Vec<_>>(), "action": rule["action"] });
            if let Some(arguments) = rule["args"].as_array().filter(|arguments| !arguments.is_empty()) {
                kept["args"] = json!(arguments);
            }
            if let Some(number) = rule["errnoRet"].as_u64() {
                kept["errnoRet"] = json!(number);
            }
            kept
        })
        .collect();
    if bpf {
        rules.push(json!({ "names": ["bpf"], "action": "SCMP_ACT_ALLOW" }));
    }
    json!({ "defaultAction": profile["defaultAction"], "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"], "syscalls": rules })
}

/// One container of the manifests as a runtime takes it.
fn bundle(container: &Value, rootfs: &str, volumes: &[(String, String)]) -> Value {
    let security = &container["securityContext"];
    let added = security["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    let capabilities: Vec<String> = added.iter().map(|name| format!("CAP_{}", name.as_str().unwrap())).collect();
    let words = |list: &Value| list.as_array().cloned().unwrap_or_default();
    let expand = |word: Value| Value::String(word.as_str().unwrap().replace("$(NODE_NAME)", "gw-1"));
    let arguments: Vec<Value> =
        words(&container["command"]).into_iter().chain(words(&container["args"])).map(expand).collect();
    let hardened = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": hardened }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    for mount in words(&container["volumeMounts"]) {
        let (_, place) = volumes.iter().find(|(name, _)| mount["name"] == name.as_str()).unwrap();
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        mounts.push(json!({ "destination": mount["mountPath"], "type": "bind", "source": place,
            "options": ["rbind", "nosuid", access] }));
    }
    let held = json!(capabilities);
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind })).into();
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": rootfs, "readonly": security["readOnlyRootFilesystem"] },
        "process": {
            "cwd": "/", "args": arguments, "env": ["PATH=/usr/bin", "NODE_NAME=gw-1", "RUST_LOG=info"],
            "user": { "uid": security["runAsUser"], "gid": security["runAsGroup"] },
            "capabilities": { "bounding": held, "effective": held, "permitted": held },
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            // Less than any engine gives.
            "rlimits": [{ "type": "RLIMIT_MEMLOCK", "hard": 65536, "soft": 65536 }],
        },
        "mounts": mounts,
        "linux": { "namespaces": namespaces, "seccomp": seccomp(&capabilities),
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"] },
    })
}

/// A container that runs, with its log.
struct Container {
    name: String,
    child: Child,
    log: String,
}

impl Container {
    fn start(name: &str, config: &Value) -> Container {
        let bundle = format!("{HOME}/bundle-{name}");
        fs::create_dir_all(&bundle).unwrap();
        fs::write(format!("{bundle}/config.json"), config.to_string()).unwrap();
        let log = format!("{bundle}/log");
        let out = fs::File::create(&log).unwrap();
        let mut command = Command::new("crun");
        command.args([
            "--root",
            &format!("{HOME}/crun"),
            "--cgroup-manager=disabled",
            "run",
            "--bundle",
            &bundle,
            name,
        ]);
        let child = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
        Container { name: name.into(), child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Runs a program in it, with its user and its capabilities.
    fn exec(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("crun");
        command.args(["--root", &format!("{HOME}/crun"), "--cgroup-manager=disabled", "exec", &self.name]);
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn until_healthy(&mut self) {
        let start = Instant::now();
        loop {
            let output = self.exec(&["/usr/bin/tidegate", "health"]);
            if output.status.success() {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            let said = format!("{}{}{}", text(&output.stdout), text(&output.stderr), self.log());
            assert!(ended.is_none() && start.elapsed() < HEALTHY_WITHIN, "{}: {ended:?}\n{said}", self.name);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Number, here, of its first process.
    fn pid(&self) -> String {
        let state = run(&format!("crun --root {HOME}/crun --cgroup-manager=disabled state {}", self.name));
        serde_json::from_str::<Value>(&state).unwrap()["pid"].to_string()
    }

    fn end(mut self, signal: &str) {
        run(&format!("kill -{signal} {}", self.pid()));
        self.child.wait().unwrap();
        run(&format!("crun --root {HOME}/crun --cgroup-manager=disabled delete --force {} || true", self.name));
    }
}

/// A line of `/proc/PID/status`.
fn status(pid: &str, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn the_image_runs_with_the_privileges_of_the_manifests_and_no_more() {
    let name = "the_image_runs_with_the_privileges_of_the_manifests_and_no_more";
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "240", "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]);
    command.arg("--mount-proc").arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(INSIDE, "1");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && said.contains("1 passed"), "inside the namespaces:\n{said}");
}

/// Everybody may read the manual page of each command and the completions, and they are those of the program in the image.
fn has_pages_and_completions(rootfs: &Path) {
    let share = rootfs.join("usr/share");
    let says = |arguments: &[&str]| {
        let output = Command::new(rootfs.join("usr/bin/tidegate")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let read = |file: &str| {
        let file = share.join(file);
        let mode =
            fs::metadata(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{}", file.display());
        fs::read_to_string(file).unwrap()
    };
    assert_eq!(read("man/man1/tidegate.1"), says(&["man"]));
    let pages = fs::read_dir(share.join("man/man1")).unwrap().count();
    let shown = read("man/man1/tidegate-show-drops.1");
    assert!(pages > 20 && shown.contains(".SH SYNOPSIS"), "{pages} pages\n{shown}");
    for (shell, file) in [
        ("bash", "bash-completion/completions/tidegate"),
        ("zsh", "zsh/vendor-completions/_tidegate"),
        ("fish", "fish/vendor_completions.d/tidegate.fish"),
    ] {
        assert_eq!(read(file), says(&["completion", shell]), "{shell}");
    }
}

fn inside() {
    run("mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up");
    // No control group is made here, but crun wants to see one kind of them and not both.
    run("umount /sys/fs/cgroup/unified 2> /dev/null || true");
    // The devices that the plain manifests name.
    for device in ["wan0", "lan0"] {
        run(&format!("ip link add {device} type veth peer name {device}-peer && ip link set {device} up"));
        run(&format!("ip link set {device}-peer up && ethtool -K {device} tx off > /dev/null"));
    }
    fs::create_dir_all(HOME).unwrap();
    let archive = format!("{HOME}/tidegate.tar");
    let build = repository().join("deploy/image/build");
    println!("{}", run(&format!("TMPDIR={HOME} {} {} {archive}", build.display(), programs().display())));
    let storage = format!("buildah --root {HOME}/storage --runroot {HOME}/runroot --storage-driver vfs");
    let container = run(&format!("{storage} from --quiet oci-archive:{archive}"));
    let rootfs = run(&format!("{storage} mount {}", container.trim())).trim().to_owned();
    assert!(!Path::new(&rootfs).join("bin/sh").exists(), "nothing is in it but Tidegate");

    has_pages_and_completions(Path::new(&rootfs));

    let manifests = manifests();
    let volumes = volumes(&manifests);
    let containers = &of_kind(&manifests, "DaemonSet")["spec"]["template"]["spec"]["containers"];
    let [dataplane, control] = [0, 1].map(|index| bundle(&containers[index], &rootfs, &volumes));

    let mut first = Container::start("dataplane", &dataplane);
    first.until_healthy();
    let workers = text(&first.exec(&["/usr/bin/tidegate", "show", "workers"]).stdout);
    assert!(workers.contains("wan0/0, lan0/0"), "{workers}");
    let ports: Value =
        serde_json::from_slice(&first.exec(&["/usr/bin/tidegate", "show", "ports", "--json"]).stdout).unwrap();
    assert!(ports.as_array().unwrap().iter().all(|port| port["mode"] == "copy"), "{ports}");
    // NET_ADMIN 12, NET_RAW 13, IPC_LOCK 14, BPF 39 (include/uapi/linux/capability.h); a filter is mode 2.
    let pid = first.pid();
    let held = ["CapPrm", "CapEff", "CapBnd"].map(|field| u64::from_str_radix(&status(&pid, field), 16).unwrap());
    assert_eq!(held, [1 << 12 | 1 << 13 | 1 << 14 | 1 << 39; 3]);
    assert_eq!((status(&pid, "NoNewPrivs"), status(&pid, "Seccomp")), ("1".into(), "2".into()));
    assert!(!first.log().contains("WARN"), "{}", first.log());

    // Not ready: nobody has told it what it is here for. Control's user may ask it, without any capability.
    let ready = first.exec(&["/usr/bin/tidegate", "health", "--ready"]);
    assert!(!ready.status.success() && text(&ready.stderr).contains("not ready"), "{}", text(&ready.stderr));
    let mut asks = control;
    asks["process"]["args"] = json!(["/usr/bin/tidegate", "health"]);
    let mut visitor = Container::start("visitor", &asks);
    assert!(visitor.child.wait().unwrap().success(), "{}", visitor.log());
    asks["process"]["args"] = json!(["/usr/bin/tidegate-control", "--version"]);
    let mut version = Container::start("version", &asks);
    assert!(
        version.child.wait().unwrap().success() && version.log().contains("tidegate-control "),
        "{}",
        version.log()
    );

    // Killed, it leaves its XDP programs, and the next one finds them by their pins, since it may not look at every one.
    first.end("KILL");
    assert!(run("ip link show wan0").contains("xdp"));
    let mut second = Container::start("dataplane", &dataplane);
    second.until_healthy();
    assert_eq!(second.log().matches("took over the pinhole").count(), 2, "{}", second.log());
    second.end("TERM");
}
