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
INPUT = $(addprefix $(SOURCE)/,Cargo.toml Cargo.lock model/Cargo.toml) \
	$(shell find $(SOURCE)/src $(SOURCE)/model/src $(SOURCE)/sql -type f)

export PGRX_PG_CONFIG_PATH := $(shell $(PG_CONFIG) --bindir)/pg_config
# Panic messages name source files: not where those were on this machine.
CARGO_HOME ?= $(HOME)/.cargo
override RUSTFLAGS += --remap-path-prefix=$(SOURCE)=session_limit --remap-path-prefix=$(CARGO_HOME)=cargo
export RUSTFLAGS

.PHONY: all install installcheck uninstall clean
all: $(LIBRARY)

# Made only if something has changed, so that root, who installs, needs no cargo.
$(LIBRARY): $(INPUT)
	cd $(SOURCE) && $(CARGO) build --locked --release --package session_limit --lib \
		--no-default-features --features pg$(MAJOR) --target-dir $(TARGET) \
		--ignore-rust-version $(CARGO_FLAGS)
	touch $@

install: all
	$(INSTALL) -d '$(LIBDIR)' '$(EXTENSIONDIR)'
	$(INSTALL) -m 755 $(LIBRARY) '$(LIBDIR)/session_limit.so'
	$(INSTALL) -m 644 $(SOURCE)/session_limit.control $(SOURCE)/sql/session_limit--*.sql '$(EXTENSIONDIR)'

# On a running server that preloads the library, as a superuser.
installcheck:
	PATH="$$($(PG_CONFIG) --bindir):$$PATH" sh $(SOURCE)/pg_test/installcheck.sh

uninstall:
	rm -f '$(LIBDIR)/session_limit.so' '$(EXTENSIONDIR)'/session_limit.control '$(EXTENSIONDIR)'/session_limit--*.sql

clean:
	rm -rf $(SOURCE)/target/pg[1-9]*
