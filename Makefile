# `make` alone says what there is.

CARGO ?= cargo
SCRIPTS = tests/all tests/sandbox tests/toolchain tests/no-leftovers .ci/run \
	cross/build cross/package cross/test $(wildcard files/debian/*) \
	$(addprefix files/etc/,init.d/mptcp-bond uci-defaults/90-mptcp-bond hotplug.d/iface/95-mptcp-bond) \
	$(addprefix tests/package/double/,etc/rc.common lib/functions.sh lib/functions/procd.sh bin/opkg sbin/uci)

.PHONY: help deps run baseline bench build cross packages test fuzz lint deny

help:
	@echo 'make run       two uplinks become one, on show: lab, server, agent, a download (root)'
	@echo 'make baseline  the same with plain kernel MPTCP instead of server and agent (root)'
	@echo 'make bench     pairs of unequal uplinks, outages, idleness, the cost of relaying (root); BENCH="...",'
	@echo '               OUTAGES="..." and DATAPATH="..." for options'
	@echo 'make cross     static programs for routers and servers, in target/cross; TARGET=... for one of them'
	@echo 'make packages  .ipk, .apk and .deb of them, in target/packages; TARGET=... for those of one program'
	@echo 'make test      all tests, in namespaces of their own (root)'
	@echo 'make fuzz      all decoders under libFuzzer (installs cargo-fuzz); TARGET=... for one of them, TIME=seconds'
	@echo 'make lint      formatting, clippy, shellcheck, licences and sources of the dependencies'
	@echo 'make deny      the latter and advisories (installs cargo-deny)'
	@echo 'make deps      installs what is missing on Debian; run and test do that, too'

deps:
	@tests/toolchain

build: deps
	$(CARGO) build --release --locked --quiet --bin mptcp-bond --example lab --example matrix --example outages --example datapath --example scale

run: build
	@$(CARGO) run --release --locked --quiet --example lab

baseline: build
	@$(CARGO) run --release --locked --quiet --example lab -- --baseline

bench: build
	@$(CARGO) run --release --locked --quiet --example matrix -- --output target/matrix.md $(BENCH)
	@$(CARGO) run --release --locked --quiet --example outages -- --output target/outages.md $(OUTAGES)
	@$(CARGO) run --release --locked --quiet --example datapath -- --output target/datapath.md $(DATAPATH)
	@$(CARGO) run --release --locked --quiet --example scale -- --output target/scale.md $(SCALE)

cross:
	cross/build $(TARGET)

packages: cross
	cross/package

test: deps
	CARGO=$(CARGO) tests/no-leftovers tests/all

fuzz:
	command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked
	cd tests/fuzz && for target in $${TARGET:-$$($(CARGO) fuzz list --fuzz-dir .)}; do \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --fuzz-dir . --sanitizer none $$target -- \
			-max_total_time=$${TIME:-60} -max_len=1024 || exit 1; \
	done

lint: deps
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- --deny warnings
	shellcheck $(SCRIPTS)
	CARGO=$(CARGO) tests/dependencies

deny:
	command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(CARGO) deny --locked check
