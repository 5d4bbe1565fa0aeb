"""The report of a campaign: what it shows, the HTML page and the PNG figures."""
