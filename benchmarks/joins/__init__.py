"""One run whose cohort changes at random while it trains, against the replay of its record."""
