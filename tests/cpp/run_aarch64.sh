#!/bin/sh
# run_aarch64.sh [BUILD_DIR]: builds the C++ tests for AArch64 and runs them in an emulator.
# On Debian and Ubuntu:  apt-get install g++-aarch64-linux-gnu qemu-user cmake doctest-dev
set -eu
here=$(cd "$(dirname "$0")" && pwd)
build=${1:-$(mktemp -d)}
# doctest is one header without code for any machine; the cross compiler does not look where the
# system keeps it.
doctest=${DOCTEST_INCLUDE_DIR:-/usr/include}
mkdir -p "$build/include"
ln -sfn "$doctest/doctest" "$build/include/doctest"
cmake -S "$here" -B "$build" \
  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-L;/usr/aarch64-linux-gnu" \
  -DDOCTEST_INCLUDE_DIR="$build/include"
cmake --build "$build" --target jaxsparse_cpp_tests
ctest --test-dir "$build" --output-on-failure
