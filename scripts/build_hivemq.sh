#!/bin/sh
# Fetches HiveMQ Community Edition with Maven, once per user, and prints the class path of the second broker that the
# tests run beside Mosquitto. Why this one: it shares no code and no habits with Mosquitto, it is the open core of a
# broker that runs in clusters, it knows shared subscriptions and persistent sessions, its licence is Apache-2.0, and a
# package registry has it, so that a fresh machine gets the very same bytes.
set -eu

version=2025.5
java_minimum=11 # of its class files
fetcher=org.apache.maven.plugins:maven-dependency-plugin:3.8.1
sources=$(cd "$(dirname "$0")" && pwd)/hivemq
cache=${XDG_CACHE_HOME:-$HOME/.cache}/onestreet/hivemq-$version
export LC_ALL=C # the order of the jars
jars=$cache/jars-$(sha256sum "$sources/sha256sums" | cut -c 1-12)
classes=$cache/classes-$(cat "$sources/Broker.java" "$sources/sha256sums" | sha256sum | cut -c 1-12)

say() { printf 'hivemq: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }
answer() { echo "$classes:$jars/*"; exit 0; }

mkdir -p "$cache"
if [ -d "$classes" ]; then answer; fi
exec 9>"$cache/lock"
flock -n 9 || { say 'another build is running: waiting for it'; flock -w 900 9 || die 'it took over 15 minutes'; }
# A build we waited for may have made it.
if [ -d "$classes" ]; then answer; fi

sh "$sources/../system_packages.sh" maven default-jdk-headless
found=$(javac -version 2>&1 | sed 's/^javac //; s/\..*//')
[ "${found:-0}" -ge "$java_minimum" ] 2>/dev/null || die "a JDK of Java $java_minimum or newer is needed, found: $found"

work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

if [ ! -d "$jars" ]; then
    say "fetching HiveMQ Community Edition $version once, into $cache (100 MB)"
    cat >"$work/pom.xml" <<P
<project>
  <modelVersion>4.0.0</modelVersion>
  <groupId>onestreet</groupId>
  <artifactId>hivemq</artifactId>
  <version>1</version>
  <dependencies>
    <dependency>
      <groupId>com.hivemq</groupId>
      <artifactId>hivemq-community-edition-embedded</artifactId>
      <version>$version</version>
    </dependency>
  </dependencies>
</project>
P
    mvn --batch-mode --file "$work/pom.xml" "$fetcher:copy-dependencies" -DincludeScope=runtime \
        -DoutputDirectory="$work/jars" >"$work/log" 2>&1 </dev/null ||
        { tail -n 20 "$work/log" >&2; die 'Maven could not fetch the jars: is its repository reachable?'; }
    # The very files: no fewer, no others, no more.
    (cd "$work/jars" && sha256sum -- *.jar) | diff - "$sources/sha256sums" >&2 ||
        die "the jars fetched (<) are not those of scripts/hivemq/sha256sums (>)"
    mv "$work/jars" "$jars"
fi
javac -Xlint:all -Werror -proc:none -d "$work/classes" -cp "$jars/*" "$sources/Broker.java" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; die 'Broker.java does not compile, see above'; }
mv "$work/classes" "$classes"
answer
