# Functions written in jq that replace or complete those of the libraries.

def flatten: __flatten(128);
def flatten($depth): __flatten($depth);
def from_entries: reduce .[] as $entry ({};
  . + {($entry | if has("key") then .key elif has("k") then .k elif has("name") then .name else .Name end
        | if type == "string" then . else tojson end):
       ($entry | if has("value") then .value elif has("v") then .v else .Value end)});
def with_entries(f): to_entries | map(f) | from_entries;
def toarray: if type == "array" then . else [.] end;
def toboolean: if type == "boolean" then . elif . == "true" then true elif . == "false" then false
  else error("cannot parse as boolean") end;
def transpose: . as $rows | [range([$rows[] | length] | max // 0) as $i | [$rows[][$i]]];
def in(xs): . as $x | xs | has($x);
def inside(xs): . as $x | xs | contains($x);
def index($part): indices($part) | .[0];
def rindex($part): indices($part) | .[-1:][0];
def IN(values): any(values == .; .);
def IN(source; values): any(source == values; .);
def INDEX(rows; f): reduce rows as $row ({}; .[$row | f | tostring] = $row);
def INDEX(f): INDEX(.[]; f);
def leaf_paths: paths(scalars);
def ascii: [.] | implode;

def __format($format): if ($format | utf8bytelength) > 256 then error("time format is too long") else $format end;
def strftime($format): __strftime(__format($format));
def strflocaltime($format): __strflocaltime(__format($format));
def strptime($format): __strptime(__format($format));
def date: todate;
def dateadd(unit; seconds): . + seconds;
def datesub(unit; seconds): . - seconds;

def @json: tojson;
def @csv: [.[] | if type == "string" then "\"" + gsub("\""; "\"\"") + "\"" elif . == null then "" else tojson end]
  | join(",");
def @tsv: [.[] | if type == "string" then gsub("\\\\"; "\\\\") | gsub("\t"; "\\t") | gsub("\n"; "\\n") | gsub("\r"; "\\r")
  elif . == null then "" else tojson end] | join("\t");
