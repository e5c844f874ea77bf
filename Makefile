# Tidegate: build, show, test, measure. `make` alone lists the targets.
#
# demo, test, test-zerocopy and bench need root: they install the Debian packages they miss and work in network
# namespaces of their own. They touch no interface of the machine.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-deploy test-zerocopy bench accept-instructions build manifests image fuzz packages toolchain root

# A toolchain installed for this user is found even where the shell's profile was not read.
export PATH := $(PATH):$(HOME)/.cargo/bin
export CARGO_TERM_COLOR ?= never

TARGET := $(or $(CARGO_TARGET_DIR),target)

# Compilers and headers for the XDP program and the C libraries under AF_XDP (m4 is needed by libxdp's build), then
# what the lab uses: namespaces, offload switches, captures, real clients. libpcap compiles filters of `tidegate capture`.
PACKAGES := gcc libc6-dev make pkg-config libelf-dev zlib1g-dev clang llvm m4 libpcap-dev \
            iproute2 ethtool tcpdump curl procps traceroute util-linux nftables iptables conntrack bird2 frr nfdump

# The image and what starts it; promtool, and the Prometheus of the lab; helm comes out of a package of npm, whoever npm
# itself is from.
DEPLOY_PACKAGES := binutils buildah crun prometheus unzip $(if $(shell command -v npm),,npm)

# Counts instructions per packet.
COUNT_PACKAGES := valgrind

# A virtual machine, what it starts from, and the keys that its kernel is checked by.
GUEST_PACKAGES := qemu-system-x86 busybox-static cpio binutils xz-utils debian-archive-keyring

# Seconds per fuzz target.
FUZZ_SECONDS ?= 60

help:
	@echo 'make demo          build, run a gateway between real clients and pods, check it, clean up'
	@echo 'make demo KEEP=1   the same, and leave it running with commands to try'
	@echo 'make test          everything a machine without a NIC can prove'
	@echo 'make test-deploy   chart, manifests and units alone; fetches helm the first time'
	@echo 'make test-zerocopy zero-copy AF_XDP in a virtual machine; fetches a kernel the first time'
	@echo 'make bench         time and allocations per packet; writes target/bench-summary.json'
	@echo 'make accept-instructions   instructions per packet as they are now become those that `make test` compares with'
	@echo 'make build         release binaries in $(TARGET)/release'
	@echo 'make image         release binaries as an OCI archive in $(TARGET)/tidegate.tar'
	@echo 'make manifests     deploy/manifests/tidegate.yaml from the chart'
	@echo 'make fuzz          every fuzz target for FUZZ_SECONDS ($(FUZZ_SECONDS)) seconds'

demo: toolchain root packages
	@$(MAKE) --no-print-directory binaries || { echo 'demo: FAIL (it does not build)'; exit 1; }
	@$(TARGET)/release/tidegate-lab demo $(if $(filter-out 0 no,$(KEEP)),--keep)

test: PACKAGES += $(DEPLOY_PACKAGES) $(COUNT_PACKAGES)
test: toolchain root packages
	@.ci/checks

test-deploy: PACKAGES += $(DEPLOY_PACKAGES)
test-deploy: toolchain packages
	@deploy/check $(TARGET)/deploy
	@TIDEGATE_RENDERED="$(abspath $(TARGET))/deploy/rendered" cargo test -p tidegate-control -p tidegate-dataplane -p tidegate-node --test deploy

manifests: PACKAGES += $(DEPLOY_PACKAGES)
manifests: packages
	@WRITE=1 deploy/check $(TARGET)/deploy

image: PACKAGES += $(DEPLOY_PACKAGES)
image: toolchain packages binaries
	@deploy/image/build $(TARGET)/release $(TARGET)/tidegate.tar

# Debug builds: nothing is measured here.
test-zerocopy: PACKAGES += $(GUEST_PACKAGES)
test-zerocopy: toolchain root packages
	@timeout 900 perf/zero-copy/fetch-kernel $(TARGET)/zero-copy || { echo 'zero-copy: FAIL (no kernel)'; exit 1; }
	@cargo build -p tidegate-dataplane -p tidegate-control -p tidegate-cli -p tidegate-perf || { \
	    echo 'zero-copy: FAIL (it does not build)'; exit 1; }
	@$(TARGET)/debug/tidegate-lab zero-copy-guest --kernel $(TARGET)/zero-copy

bench: toolchain root packages
	cargo build --release -p tidegate-control
	cargo bench -p tidegate-benches
	cargo run --release -p tidegate-benches --bin bench-summary

accept-instructions: PACKAGES += $(COUNT_PACKAGES)
accept-instructions: toolchain packages
	@benches/count-instructions accept

build: toolchain packages binaries bench-memory

.PHONY: binaries
binaries:
	cargo build --release -p tidegate-dataplane -p tidegate-control -p tidegate-cli -p tidegate-node -p tidegate-perf

# What `tidegate bench` measures with in memory; apart, since it asks the dataplane for what only benches need.
.PHONY: bench-memory
bench-memory:
	cargo build --release -p tidegate-benches --bin tidegate-bench-memory

fuzz: toolchain packages
	@cargo fuzz --version >/dev/null 2>&1 || { \
	    echo 'make fuzz needs cargo-fuzz: cargo install cargo-fuzz --locked' >&2; exit 1; }
	@for target in $$(cargo fuzz list); do \
	    echo "== $$target, $(FUZZ_SECONDS) s"; \
	    finds="$(abspath $(TARGET))/fuzz-corpus/$$target"; \
	    mkdir -p "$$finds"; \
	    RUSTC_BOOTSTRAP=1 cargo fuzz run "$$target" "$$finds" "$(CURDIR)/fuzz/corpus/$$target" -- \
	        -max_total_time=$(FUZZ_SECONDS); \
	done

# The rest is for the targets above.

toolchain:
	@command -v cargo >/dev/null || { \
	    echo 'No Rust toolchain found: cargo is neither on PATH nor in ~/.cargo/bin.' >&2; \
	    echo 'Install one (the Rust project offers rustup for that; stable, $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml) or newer) and try again.' >&2; \
	    echo 'Under sudo, keep your own toolchain: sudo env "PATH=$$PATH" "HOME=$$HOME" make …' >&2; \
	    exit 1; }

root:
	@[ "$$(id -u)" = 0 ] || { \
	    echo 'This runs AF_XDP in network namespaces of its own, which needs root: sudo env "PATH=$$PATH" "HOME=$$HOME" make …' >&2; \
	    echo 'Without root, `cargo test --workspace` proves everything except the kernel.' >&2; \
	    exit 1; }
	@unshare --net --mount true 2>/dev/null || { \
	    echo 'Root, but not allowed to make network namespaces (a container without CAP_SYS_ADMIN?).' >&2; \
	    exit 1; }

packages:
	@command -v dpkg-query >/dev/null || { \
	    echo 'Not a Debian system: these must be there already: $(PACKAGES)' >&2; exit 0; }; \
	missing=; \
	for package in $(PACKAGES); do \
	    dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null | grep -q ' installed$$' || missing+=" $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	echo "installing Debian packages:$$missing"; \
	[ "$$(id -u)" = 0 ] || { \
	    echo "Installing them needs root: apt-get install$$missing" >&2; exit 1; }; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -q -o DPkg::Lock::Timeout=300 update; \
	apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $$missing; \
	for unit in bird frr prometheus nfdump; do \
	    [[ "$$missing" != *$$unit* ]] || [ ! -d /run/systemd/system ] || systemctl -q disable --now "$$unit.service"; \
	done
