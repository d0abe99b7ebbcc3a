#!/bin/sh
# The studies of benchmarks/studies/: runs go to out/study/, where they resume; tables and figures are copied to benchmarks/studies/.
set -eu
cd "$(dirname "$0")/.."

# study WHAT DATA OUT [OPTION...]
study() {
    what=$1 data=$2 out=$3
    shift 3
    target/debug/basin study "$what" "benchmarks/data/$data" --model models/fashion32 --out "out/study/$out" "$@"
    mkdir -p "benchmarks/studies/$out"
    for file in "out/study/$out"/*.md "out/study/$out"/*.json "out/study/$out"/*.svg "out/study/$out"/*.png; do
        if [ -f "$file" ]; then cp "$file" "benchmarks/studies/$out/"; fi
    done
}

small="--evaluations 108 --judge vgg=models/fashion32-vgg"
for data in centred offcentre; do
    study bias $data $data
    study table1 $data $data $small
    study per-class $data $data $small
done
study table2 centred centred $small
study table3 offcentre offcentre $small
# Whether the order at the paper's budget is another one.
paper="--evaluations 1200 --judge vgg=models/fashion32-vgg --limit 12"
study table1 centred paper-budget-centred $paper --rows adam,lbfgs,cma-adam,basincma,basincma-encoder
study table1 offcentre paper-budget-offcentre $paper --rows cma-adam,basincma
