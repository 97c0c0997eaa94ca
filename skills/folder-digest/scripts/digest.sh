#!/bin/sh
# Adds one change to the digest of its day: event on stdin, effects on stdout.
set -eu

digests=$AMAN_DATA/digests
event=$(cat)

fields=$(printf '%s\n' "$event" | "$AMAN_BIN" jq -r '
  # Control characters would break lines, a backtick would end the marking of a name.
  def plain: explode | map(if . < 32 or . == 127 or . == 96 then 63 else . end) | implode;
  .data as $d
  | (.type | split(".") | .[1:] | join(".")) as $what
  | (if $d.previous_path then "`\($d.previous_path | plain)` → `\($d.path | plain)`" else "`\($d.path | plain)`" end) as $names
  | (if $d.size and $what != "removed" then " (\($d.size) bytes)" else "" end) as $size
  | @sh "path=\($d.path) time=\(.time) change=\("\($what) \($names)\($size)")"')
eval "$fields"

case $path in
    "$digests"/*)
        echo '{"result": {"counted": false, "why": "it is a digest itself"}}'
        exit 0
        ;;
esac

day=$(date -d "$time" +%F)
file=$digests/$day.md
mkdir -p -- "$digests"
[ -s "$file" ] || printf '# Changes on %s\n\n' "$day" >"$file"
grep -qF -- "<!-- $AMAN_DELIVERY_ID -->" "$file" ||
    printf -- '- %s %s <!-- %s -->\n' "$(date -d "$time" +%H:%M)" "$change" "$AMAN_DELIVERY_ID" >>"$file"

# How many lines of the day are of this sort; grep fails when there are none, and says 0.
count() {
    grep -c "^- [0-9][0-9]:[0-9][0-9] $1" "$file" || true
}

data=$(printf '%s' "$AMAN_DATA" | sed 's/[\\"]/\\&/g')
printf '{"publish": [{"type": "digest.updated", "subject": "%s", "data": {"date": "%s", "path": "%s", "changes": %d, ' \
    "$day" "$day" "$data/digests/$day.md" "$(count '')"
printf '"created": %d, "changed": %d, "removed": %d, "renamed": %d}}]}\n' \
    "$(count 'created ')" "$(count 'changed ')" "$(count 'removed ')" "$(count 'renamed ')"
