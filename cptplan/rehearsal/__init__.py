"""Virtual campaigns that tell how good a plan a pilot budget buys."""
