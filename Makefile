# What pg_buildext, pgxn and rpm specs call; cargo does the work. docs/packaging.md says more.
#
#   make && sudo make install
#   make PG_CONFIG=/usr/lib/postgresql/18/bin/pg_config && sudo make install PG_CONFIG=/usr/lib/postgresql/18/bin/pg_config

PG_CONFIG = pg_config
CARGO = cargo
# Such as --offline. --ignore-rust-version is for Rust 1.95: pgrx asks for 1.96, and builds with it.
CARGO_FLAGS =
INSTALL = install

# pg_buildext calls from another folder.
SOURCE := $(patsubst %/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
MAJOR := $(shell $(PG_CONFIG) --version | sed 's/[^0-9]*\([0-9]*\).*/\1/')
$(if $(MAJOR),,$(error $(PG_CONFIG) does not run: say PG_CONFIG=...))
LIBDIR = $(DESTDIR)$(shell $(PG_CONFIG) --pkglibdir)
EXTENSIONDIR = $(DESTDIR)$(shell $(PG_CONFIG) --sharedir)/extension

# Each major has its own.
TARGET = $(SOURCE)/target/pg$(MAJOR)
LIBRARY = $(TARGET)/release/libsession_limit.so
# What the worker for limits across servers loads. It knows no PostgreSQL.
SERVERS = $(TARGET)/release/libsession_limit_servers.so
MANIFESTS = $(addprefix $(SOURCE)/,Cargo.toml Cargo.lock model/Cargo.toml servers/Cargo.toml)
INPUT = $(MANIFESTS) $(shell find $(SOURCE)/src $(SOURCE)/model/src $(SOURCE)/sql -type f)
SERVERS_INPUT = $(MANIFESTS) $(shell find $(SOURCE)/servers/src -type f)

export PGRX_PG_CONFIG_PATH := $(shell $(PG_CONFIG) --bindir)/pg_config
# Panic messages name source files, and so do debugging symbols: not where those were on this machine. The major is named because
# of the library that is the same for all: the packages with symbols of two majors must not have one file of the same build ID.
CARGO_HOME ?= $(HOME)/.cargo
override RUSTFLAGS += --remap-path-prefix=$(SOURCE)=session_limit-pg$(MAJOR) --remap-path-prefix=$(CARGO_HOME)=cargo
override CFLAGS += -ffile-prefix-map=$(CARGO_HOME)=cargo
export RUSTFLAGS CFLAGS
BUILD = cd $(SOURCE) && $(CARGO) build --locked --release --lib --target-dir $(TARGET) \
	--ignore-rust-version $(CARGO_FLAGS)

.PHONY: all install installcheck uninstall clean
all: $(LIBRARY) $(SERVERS)

# Made only if something has changed, so that root, who installs, needs no cargo.
$(LIBRARY): $(INPUT)
	$(BUILD) --package session_limit --no-default-features --features pg$(MAJOR)
	touch $@

$(SERVERS): $(SERVERS_INPUT)
	$(BUILD) --package session_limit_servers
	touch $@

install: all
	$(INSTALL) -d '$(LIBDIR)' '$(EXTENSIONDIR)'
	$(INSTALL) -m 755 $(LIBRARY) '$(LIBDIR)/session_limit.so'
	$(INSTALL) -m 755 $(SERVERS) '$(LIBDIR)/session_limit_servers.so'
	$(INSTALL) -m 644 $(SOURCE)/session_limit.control $(SOURCE)/sql/session_limit--*.sql '$(EXTENSIONDIR)'

# On a running server that preloads the library, as a superuser.
installcheck:
	PATH="$$($(PG_CONFIG) --bindir):$$PATH" sh $(SOURCE)/pg_test/installcheck.sh

uninstall:
	rm -f '$(LIBDIR)/session_limit.so' '$(LIBDIR)/session_limit_servers.so'
	rm -f '$(EXTENSIONDIR)'/session_limit.control '$(EXTENSIONDIR)'/session_limit--*.sql

clean:
	rm -rf $(SOURCE)/target/pg[1-9]*
