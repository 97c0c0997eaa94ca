#!/bin/sh
# Adds one dead letter to the report: event on stdin, effects on stdout.
set -eu

report=$AMAN_DATA/reports/dead-letters.md
groups=$AMAN_DATA/reports/.dead-letters
# Sections that the report shows; older groups are kept and counted, and come back with their next letter.
sections_max=200
event=$(cat)

fields=$(printf '%s\n' "$event" | "$AMAN_BIN" jq -r '
  # One line of harmless characters, at most $n of them.
  def plain($n): tostring | explode | map(if . < 32 or . == 127 or . == 96 or . == 60 then 32 else . end) | implode | .[0:$n];
  .data as $d
  | @sh "group=\($d.fingerprint // "none" | tostring) consumer=\($d.consumer // "?" | plain(100))
         reason=\($d.reason // "?" | plain(60)) error=\($d.error // "" | plain(500)) dead=\($d.delivery_id // "?" | plain(100))
         cause=\($d.event_id // "?" | plain(255)) attempts=\($d.attempts // 0 | plain(10))
         time=\(.time[0:16] | sub("T"; " "))"')
eval "$fields"

# A fingerprint becomes the name of a file.
case $group in
    *[!A-Za-z0-9_-]*) group=$(printf '%s' "$group" | sha256sum | cut -c 1-32) ;;
esac
mkdir -p -- "$groups"
letters=$groups/$group.letters

# A line for each letter: when, and which delivery of this skill counted it.
touch -- "$letters"
grep -qxF -- "$time $AMAN_DELIVERY_ID" "$letters" || printf '%s %s\n' "$time" "$AMAN_DELIVERY_ID" >>"$letters"
read -r first_day first_clock first_delivery <"$letters"
count=$(grep -c '' "$letters")

{
    printf '## %s: %s\n\n' "$consumer" "$reason"
    [ -z "$error" ] || printf '%s\n\n' "$error"
    [ "$count" -eq 1 ] && noun=letter || noun=letters
    printf -- '- %d %s, first %s %s, last %s (UTC)\n' "$count" "$noun" "$first_day" "$first_clock" "$time"
    # shellcheck disable=SC2016 # the backticks are for Markdown
    printf -- '- newest: event `%s`, delivery `%s`, %s attempts\n- fingerprint `%s`\n\n' "$cause" "$dead" "$attempts" "$group"
} >"$groups/$group.new"
mv -f -- "$groups/$group.new" "$groups/$group.md"

{
    printf '# Dead letters\n\nWhat died, grouped by what it died of; the newest first. `aman dlq list` shows what is open.\n\n'
    # The names are fingerprints: letters, digits, - and _.
    cd -- "$groups"
    ls -t -- *.md | head -n "$sections_max" | while read -r section; do cat -- "$section"; done
} >"$report.new"
mv -f -- "$report.new" "$report"

[ "$first_delivery" = "$AMAN_DELIVERY_ID" ] && new=true || new=false
printf '{"result": {"letters": %d, "new": %s}}\n' "$count" "$new"
